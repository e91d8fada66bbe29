"""Chunks on a Dask cluster."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from sciflow.errors import UserError
from sciflow.posterior.clusters import cluster
from sciflow.posterior.simulation.chunk import Chunk, Task, run_chunk
from sciflow.posterior.simulation.runners import Runner

__all__ = ["Dask"]


class Dask(Runner):
    """On a Dask cluster; the chunks of a worker that dies are run again elsewhere, `retries` times.

    Arguments:
        address: of the scheduler, "tcp://host:8786"; None for the client that is active, or a local cluster.
        workers: of the local cluster.
    """

    def __init__(self, address: str | None = None, *, workers: int = 2, retries: int = 3) -> None:
        self.address, self.workers, self.retries = address, workers, retries

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Chunk]]:
        if not tasks:
            return
        with cluster(self._where(), workers=self.workers) as client:
            from distributed import KilledWorker, as_completed

            futures = {client.submit(run_chunk, task, pure=False, retries=self.retries): task for task in tasks}
            for future in as_completed(list(futures), loop=client.loop):
                try:
                    chunk = future.result()
                except KilledWorker as error:
                    raise UserError(
                        f"the workers that ran chunk {futures[future].number} died one after the other (out of memory? a crash "
                        "in the simulator?); what was finished is kept if a folder was given"
                    ) from error
                yield futures[future], chunk
                future.release()

    def _where(self) -> Any:
        """The address, the client that is active, or a local cluster."""
        if self.address is not None:
            return self.address
        try:
            from distributed import get_client

            return get_client()
        except (ImportError, ValueError):  # without Dask `cluster` says what is missing
            return "local"
