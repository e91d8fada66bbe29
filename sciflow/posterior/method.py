"""The contract of samplers and estimators: a target in, draws with a certificate out."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import sciflow
from sciflow.arguments import integer
from sciflow.certificate import Certificate, Test
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Estimate, Posterior, Result
from sciflow.posterior.target import Target
from sciflow.transport.part import Part

__all__ = ["Estimator", "Method", "Sampler", "described"]


class Method(Part, ABC):
    """Settings of a method; calling it with a target runs it.

    Authors write `run`, which returns a `Result` (without calls, method, seed and certificate), and `tests`, which judges it.
    Both are called by `__call__`, so that no draws exist without a certificate.
    """

    result: ClassVar[type[Result]]

    def __call__(self, target: Target, draws: int = 1000, *, seed: int = 0, progress: bool = True) -> Any:
        """`draws` draws of the target (per chain where there are chains).

        The same seed gives the same draws. `progress` shows a bar on a terminal.
        """
        draws = integer("draws", draws, 1, 2**40)
        counted = target.counted()
        began = time.process_time()
        found = self.run(
            counted, draws, Randomness(seed, type(self).__name__, device=target.device, dtype=target.dtype), progress=progress
        )
        seconds = time.process_time() - began
        found = self.result(**{**vars(found), "calls": counted.calls, "method": described(self), "seed": seed,
                               "names": found.names or target.names,
                               "statistics": {**found.statistics, "processor_seconds": seconds}})  # fmt: skip
        context = {"method": found.method, "target": described(target), "seed": seed, "draws": list(found.x.shape[:2]),
                   "calls": found.calls.as_dict(), "sciflow": sciflow.__version__}  # fmt: skip
        tests = [*self.tests(found, counted), counted.values_test()]
        certificate = Certificate(tests, subject=type(self).__name__, context=context)
        return replace(found, certificate=certificate)

    @abstractmethod
    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        """The draws. `target` counts its calls."""

    @abstractmethod
    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        """What may be said of these draws from themselves: effective size, k-hat, R-hat, ..."""


class Sampler(Method):
    """A method whose draws are the target's in the limit of computation (and of capacity and data, where it learns)."""

    result = Posterior

    def __call__(self, target: Target, draws: int = 1000, *, seed: int = 0, progress: bool = True) -> Posterior:
        return super().__call__(target, draws, seed=seed, progress=progress)


class Estimator(Method):
    """A method that does not reach the posterior in any limit. Its certificate fails by construction, with the reason.

    `bias` says in one sentence what its draws are instead; `right` on which problems they are right.
    """

    result = Estimate
    bias: ClassVar[str]
    right: ClassVar[str]

    def __call__(self, target: Target, draws: int = 1000, *, seed: int = 0, progress: bool = True) -> Estimate:
        return super().__call__(target, draws, seed=seed, progress=progress)

    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        return [Test("reaches the posterior in the limit", 0.0, 1.0, ">=", description=self.bias)]


def described(value: Any) -> str:
    """The repr without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))
