"""Running simulators: in series, in processes, on Dask; resumable, with the same numbers every time."""

from sciflow.posterior.simulation.chunk import Chunk, run_chunk
from sciflow.posterior.simulation.dask_runner import Dask
from sciflow.posterior.simulation.runners import Processes, Runner, Serial
from sciflow.posterior.simulation.simulate import Simulations, simulate

__all__ = ["Chunk", "Dask", "Processes", "Runner", "Serial", "Simulations", "run_chunk", "simulate"]
