"""A few rows of simulations: what one worker does, and what is written at once."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sciflow.files import replacing

__all__ = ["Chunk", "Task", "run_chunk"]


class Task(NamedTuple):
    """What a worker needs to know: rows `start` to `start + len(theta)`."""

    simulator: Callable[[np.ndarray, np.random.Generator], Any]
    theta: np.ndarray
    start: int
    seed: int
    batched: bool
    number: int


class Chunk(NamedTuple):
    """Results of some rows: y of those that worked, their places within the chunk, and what happened to the others."""

    y: np.ndarray
    good: np.ndarray
    errors: list[tuple[int, str]]  # (row of the whole run, message)

    def write(self, path: Path) -> None:
        """As an npz file, whole or not at all."""
        with replacing(path) as beside, beside.open("wb") as file:
            np.savez(file, y=self.y, good=self.good, errors=np.array(json.dumps(self.errors)))

    @classmethod
    def read(cls, path: Path) -> Chunk:
        """Raises OSError, ValueError or KeyError if it is no such file."""
        with np.load(path, allow_pickle=False) as found:
            errors = [(int(row), str(message)) for row, message in json.loads(str(found["errors"]))]
            return cls(found["y"], found["good"], errors)


def generator(seed: int, number: int, *, batched: bool = False) -> np.random.Generator:
    """The random numbers of one row (or, batched, of one chunk): a function of seed and number alone.

    >>> bool(generator(0, 7).integers(1000) == generator(0, 7).integers(1000))
    True
    """
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed, spawn_key=(int(batched), number))))


def run_chunk(task: Task) -> Chunk:
    """Simulate the rows of a task. What raises, or is not finite, or has another shape than most, becomes an error."""
    found = _batch(task) if task.batched else _rows(task)
    return collected(found, task.start)


def collected(found: list[Any], start: int) -> Chunk:
    """Rows that are arrays or messages as a chunk."""
    for place, value in enumerate(found):
        if isinstance(value, np.ndarray) and not np.isfinite(value).all():
            found[place] = f"{int((~np.isfinite(value)).sum())} of {value.size} values are not finite"
    shapes = Counter(value.shape for value in found if isinstance(value, np.ndarray))
    usual = shapes.most_common(1)[0][0] if shapes else (0,)
    for place, value in enumerate(found):
        if isinstance(value, np.ndarray) and value.shape != usual:
            found[place] = f"shape {value.shape}, others have {usual}"
    good = np.array([place for place, value in enumerate(found) if isinstance(value, np.ndarray)], dtype=np.int64)
    y = np.stack([found[place] for place in good]) if len(good) else np.empty((0, *usual))
    return Chunk(y, good, [(start + place, value) for place, value in enumerate(found) if isinstance(value, str)])


def _rows(task: Task) -> list[Any]:
    found: list[Any] = []
    for place, row in enumerate(task.theta):
        try:
            value = task.simulator(row.copy(), generator(task.seed, task.start + place))
            found.append(_real(value))
        except (Exception, SystemExit) as error:  # a simulator may raise anything: it is recorded with its row
            found.append(f"{type(error).__name__}: {error}")
    return found


def _batch(task: Task) -> list[Any]:
    try:
        value = _real(task.simulator(task.theta.copy(), generator(task.seed, task.number, batched=True)))
    except (Exception, SystemExit) as error:
        return [f"{type(error).__name__}: {error}"] * len(task.theta)
    if value.shape[:1] != task.theta.shape[:1]:
        return [f"ValueError: the simulator returned shape {value.shape} for {len(task.theta)} rows"] * len(task.theta)
    return list(value)


def _real(value: Any) -> np.ndarray:
    """A copy in float64. Raises `TypeError` for complex numbers, of which the conversion would drop the imaginary part."""
    if np.iscomplexobj(value):
        raise TypeError("the data are complex: return two real channels, np.stack([y.real, y.imag], -1)")
    return np.array(value, dtype=np.float64)
