"""Simulations of a prior: chunked, resumable, the same whoever computes them."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.posterior.prior import as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.simulation.chunk import Chunk, Task, collected
from sciflow.posterior.simulation.runners import Runner, Serial
from sciflow.strict_json import dumps, loads
from sciflow.training.progress import ProgressBar

__all__ = ["Simulations", "simulate"]

_LOG = logging.getLogger(__name__)
_MANIFEST = "simulations.json"


@dataclass(frozen=True)
class Simulations:
    """Parameters theta (N, D) and data y (N, ...), float64; NaN in the rows of y that failed.

    `errors` has (row, message) for each of these. `fit_posterior(prior, *simulations)` leaves them out and counts them.
    """

    theta: Tensor
    y: Tensor
    errors: list[tuple[int, str]] = field(default_factory=list)

    @property
    def good(self) -> Tensor:
        """Which rows worked (N,)."""
        found = torch.ones(len(self.theta), dtype=torch.bool)
        found[[row for row, _ in self.errors]] = False
        return found

    def __iter__(self) -> Any:
        return iter((self.theta, self.y))

    def __add__(self, other: Simulations) -> Simulations:
        if self.y.shape[1:] != other.y.shape[1:]:
            raise UserError(f"data of shapes {tuple(self.y.shape[1:])} and {tuple(other.y.shape[1:])} do not go together")
        errors = [*self.errors, *((row + len(self.theta), message) for row, message in other.errors)]
        return Simulations(torch.cat((self.theta, other.theta)), torch.cat((self.y, other.y)), errors)

    def __repr__(self) -> str:
        failed = f", {len(self.errors)} failed (first: {self.errors[0][1]})" if self.errors else ""
        return f"Simulations({len(self.theta)} of {self.theta.shape[1]} parameters, data {tuple(self.y.shape[1:])}{failed})"


def simulate(
    simulator: Callable[[np.ndarray, np.random.Generator], Any], prior: Any = None, simulations: int | None = None, *,
    theta: Tensor | None = None, seed: int = 0, runner: Runner | None = None, folder: str | Path | None = None,
    chunk: int = 100, batched: bool = False, progress: bool = True,
) -> Simulations:  # fmt: skip
    """Run a simulator on draws of a prior, or on given parameters.

    Arguments:
        simulator: (theta (D,), numpy Generator) -> data, an array of the same shape each time; both float64. The generator of a
            row depends on seed and row alone, so that any runner and any chunk give the same numbers.
        prior, simulations: how many draws of which prior; or `theta` (N, D).
        runner: `Serial()`, `Processes(workers)` or `Dask(address)`.
        folder: chunks are written there as they are finished, and found there by a later call with the same arguments; another
            seed, prior or number of rows is refused. So is another simulator, by the first row that is there (batched: the
            first chunk), which is run again.
        chunk: rows per chunk.
        batched: the simulator takes theta (n, D) and returns n rows; one generator per chunk, so that the chunk size matters.

    A row that raises, is not finite, or has another shape than the others is recorded, and NaN in y. Raises `UserError` with
    the first message if not a single one worked.

    >>> found = simulate(lambda theta, random: theta + random.normal(size=2), theta=torch.zeros(5, 2), progress=False)
    >>> found
    Simulations(5 of 2 parameters, data (2,))
    """
    theta = _parameters(prior, simulations, theta, seed)
    chunk = integer("chunk", chunk, 1, 2**31)
    rows = theta.numpy()
    tasks = [
        Task(simulator, rows[start : start + chunk], start, seed, batched, number)
        for number, start in enumerate(range(0, len(rows), chunk))
    ]
    done: dict[int, Chunk] = {}
    place = None if folder is None else Path(folder)
    if place is not None:
        _enter(place, {"seed": seed, "rows": len(rows), "chunk": chunk, "batched": batched,
                       "theta": hashlib.sha256(rows.tobytes()).hexdigest()})  # fmt: skip
        done = {task.number: found for task in tasks if (found := _finished(place, task)) is not None}
        _same_simulator(place, runner or Serial(), tasks, done)
    with ProgressBar(len(tasks), done=len(done), visible=progress) as bar:
        bar.update(len(done), "simulating")
        for task, found in (runner or Serial())([task for task in tasks if task.number not in done]):
            if place is not None:
                found.write(_file(place, task.number))
            done[task.number] = found
            bar.update(len(done), f"simulating, {sum(len(entry.errors) for entry in done.values())} failed")
    return _assembled(theta, [done[task.number] for task in tasks], chunk)


def _parameters(prior: Any, simulations: int | None, theta: Tensor | None, seed: int) -> Tensor:
    if (theta is None) == (prior is None):
        raise UserError("give a prior with a number of simulations, or theta")
    if theta is None:
        count = integer("simulations", simulations, 1, 2**40)
        known = as_prior(prior)
        if len(known.event_shape) != 1:
            raise UserError(
                f"the prior has event shape {tuple(known.event_shape)}, a simulator takes vectors theta (D,): "
                'Prior.product({"name": prior}) makes its numbers the entries of one'
            )
        theta = known.draw(count, Randomness(seed, "simulate"))
    theta = torch.as_tensor(theta).double()
    if theta.dim() != 2 or not bool(theta.isfinite().all()):
        raise UserError(f"theta has shape {tuple(theta.shape)}: give finite parameters (N, D)")
    return theta.cpu().contiguous()


def _assembled(theta: Tensor, chunks: list[Chunk], size: int) -> Simulations:
    """Whole arrays; the shape that most rows have is the right one."""
    shapes = [(len(entry.good), entry.y.shape[1:]) for entry in chunks if len(entry.good)]
    errors = [error for entry in chunks for error in entry.errors]
    if not shapes:
        raise UserError(f"all {len(theta)} simulations failed; the first: {errors[0][1]}")
    if len({shape for _, shape in shapes}) > 1:
        found: list[Any] = ["failed"] * len(theta)
        for number, entry in enumerate(chunks):
            for row, place in zip(entry.y, entry.good, strict=True):
                found[number * size + int(place)] = row
        for row, message in errors:
            found[row] = message
        chunks, size = [collected(found, 0)], len(theta)
        errors = chunks[0].errors
    shape = next(entry.y.shape[1:] for entry in chunks if len(entry.good))
    y = torch.full((len(theta), *shape), torch.nan, dtype=torch.float64)
    for number, entry in enumerate(chunks):
        if len(entry.good):  # a chunk of failures knows no shape
            y[number * size + torch.from_numpy(entry.good)] = torch.from_numpy(entry.y)
    if errors:
        _LOG.warning("%d of %d simulations failed; row %d: %s", len(errors), len(theta), *sorted(errors)[0])
    return Simulations(theta, y, sorted(errors))


def _enter(folder: Path, manifest: dict[str, Any]) -> None:
    """Make the folder, or see that it belongs to the same run."""
    path = folder / _MANIFEST
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            if any(folder.glob("chunk-*.npz")):
                raise UserError(f"{folder} has chunks but no {_MANIFEST}: give another folder")
            with replacing(path) as beside:
                beside.write_text(dumps(manifest) + "\n", encoding="utf-8")
            return
        before = loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{folder}: chunks cannot be kept there: {reason(error)}") from error
    except UserError:
        raise
    except ValueError as error:
        raise UserError(f"{path}: not JSON, or cut short: {error}") from error
    for name, value in manifest.items():
        if before.get(name) != value:
            what = "other parameters" if name == "theta" else f"{name}={before.get(name)}, now it is {value}"
            raise UserError(f"{folder} holds simulations with {what}: give the same arguments, or another folder")


def _same_simulator(folder: Path, runner: Runner, tasks: list[Task], done: dict[int, Chunk]) -> None:
    """Run the first row that worked (the first such chunk, if batched) again. Raises `UserError` if it gives another result."""
    task = next((task for task in tasks if task.number in done and len(done[task.number].good)), None)
    if task is None:
        return
    before, place = done[task.number].y[0], int(done[task.number].good[0])
    row = task.start + place
    if not task.batched:
        task, place = task._replace(theta=task.theta[place : place + 1], start=row), 0
    [(_, found)] = runner([task])
    messages = dict(found.errors)
    if row in messages:
        said = f"fails now: {messages[row]}"
    else:
        again = found.y[list(found.good).index(place)]
        if again.shape == before.shape and np.allclose(again, before, rtol=0, atol=1e-6 * np.abs(before).max(initial=0)):
            return  # machines differ in their last bits
        said = "comes out differently now"
    raise UserError(
        f"{folder} holds simulations of which row {row} {said}: another simulator, or one whose random numbers are not those "
        "of its generator: give the same one, or another folder"
    )


def _file(folder: Path, number: int) -> Path:
    return folder / f"chunk-{number:06d}.npz"


def _finished(folder: Path, task: Task) -> Chunk | None:
    """A chunk that is there and whole."""
    path = _file(folder, task.number)
    if not path.exists():
        return None
    try:
        found = Chunk.read(path)
    except Exception as error:  # whatever a damaged archive raises: the chunk is made again
        _LOG.warning("%s is damaged (%s) and is made again", path, type(error).__name__)
        return None
    return found if len(found.good) + len(found.errors) == len(task.theta) else None
