"""What a worker does: the draws of a few observations, each by a seed of its own."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch

from sciflow.posterior.method import Method, portable
from sciflow.posterior.problem import Problem
from sciflow.posterior.result import Result
from sciflow.posterior.writing import STATISTICS
from sciflow.store.tree import numpy_of
from sciflow.strict_json import dumps, plain

__all__ = ["ARRAYS", "Drawn", "Work", "drawn_chunk", "seed_of"]

ARRAYS = {"x": ("x", "draws"), **STATISTICS}
_LOCK = threading.Lock()


@dataclass(frozen=True)
class Work:
    """What is the same for all observations.

    Arguments:
        method: a `Method`, or whatever is called as method(observation, draws, seed=..., **choices) and returns a `Result`.
        problem: what observations are put into, for a `Method`; None if the items are targets themselves.
        threads: of torch. Sums over many numbers depend on it in their last bits, hence it is the same everywhere.
        dtype: torch's default, which other processes do not know.
    """

    method: Any
    draws: int
    seed: int
    problem: Problem | None = None
    choices: Mapping[str, Any] = field(default_factory=dict)
    threads: int = 1
    dtype: torch.dtype = torch.float32

    def __call__(self, item: Any, number: int) -> Result:
        """The result for one observation: a function of (item, seed, number) alone."""
        seed = seed_of(self.seed, number)
        torch.manual_seed(seed)
        if not isinstance(self.method, Method):
            return self.method(item, self.draws, seed=seed, **self.choices)
        target = item if self.problem is None else self.problem.with_observation(item)
        return self.method(target, self.draws, seed=seed, progress=False)


class Drawn(NamedTuple):
    """One observation: arrays by the names of `Result`, what is said of them as JSON; or why there is nothing."""

    number: int
    arrays: dict[str, np.ndarray]
    records: dict[str, str]
    calls: dict[str, int]
    evidence: tuple[float, float, str, tuple[float, ...]] | None
    names: list[str] | None
    seconds: float
    bad: int = 0  # draws with a number that is not finite
    failure: str = ""


def seed_of(seed: int, number: int) -> int:
    """The seed of one observation, of 63 bits.

    >>> seed_of(0, 1) == seed_of(0, 1) != seed_of(1, 0)
    True
    """
    return int(np.random.SeedSequence(seed, spawn_key=(number,)).generate_state(1, np.uint64)[0] >> np.uint64(1))


def drawn_chunk(work: Work, items: Sequence[Any], first: int) -> list[Drawn]:
    """Observations first, first + 1, ... one after the other. Whatever an observation raises is recorded with it."""
    with _surroundings(work):
        return [_drawn(work, item, first + place) for place, item in enumerate(items)]


def _drawn(work: Work, item: Any, number: int) -> Drawn:
    try:
        return _packed(work(item, number), number)
    except Exception as error:  # one bad observation must not take the others with it
        reason = f"{type(error).__name__}: {' '.join(str(error).split())}"
        return Drawn(number, {}, {}, {}, None, None, 0.0, failure=reason)


def _packed(result: Result, number: int) -> Drawn:
    arrays = {name: numpy_of(value) for name in ARRAYS if (value := getattr(result, name)) is not None}
    bad = int((~np.isfinite(arrays["x"])).reshape(*arrays["x"].shape[:2], -1).any(-1).sum())
    statistics = dict(result.statistics)
    seconds = float(statistics.pop("processor_seconds", 0.0))
    records = {
        "certificate": portable(dumps(result.certificate.to_dict(), indent=None)),
        "verdict": result.certificate.verdict,
        "statistics": dumps(plain(statistics, "statistics"), indent=None),
        "method": portable(result.method),
    }
    evidence = None if result.evidence is None else tuple(result.evidence)
    names = None if result.names is None else list(result.names)
    return Drawn(number, arrays, records, result.calls.as_dict(), evidence, names, seconds, bad)  # type: ignore[arg-type]


@contextmanager
def _surroundings(work: Work) -> Iterator[None]:
    """One at a time in a process, since torch's generator, threads and default dtype belong to the process."""
    with _LOCK, torch.random.fork_rng(devices=[]):
        threads, dtype = torch.get_num_threads(), torch.get_default_dtype()
        torch.set_num_threads(work.threads)
        torch.set_default_dtype(work.dtype)
        try:
            yield
        finally:
            torch.set_num_threads(threads)
            torch.set_default_dtype(dtype)
