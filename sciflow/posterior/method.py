"""The contract of samplers and estimators: a target in, draws with a certificate out."""

from __future__ import annotations

import re
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

import torch

import sciflow
from sciflow.arguments import integer
from sciflow.certificate import SCOPE, Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Estimate, Posterior, Result
from sciflow.posterior.target import Target
from sciflow.transport.part import Part

__all__ = ["Estimator", "Method", "Sampler", "described", "portable"]


class Method(Part, ABC):
    """Settings of a method; calling it with a target runs it.

    Authors write `run`, which returns a `Result` (without calls, method, seed and certificate), and `tests`, which judges it.
    Both are called by `__call__`, so that no draws exist without a certificate. `caveat` is the end of its scope line: what the
    tests cannot see.
    """

    result: ClassVar[type[Result]]
    caveat: ClassVar[str] = "modes that no draw has met are in none of the tests"

    def __call__(self, target: Target, draws: int = 1000, *, seed: int = 0, progress: bool = True) -> Any:
        """`draws` draws of the target (per chain where there are chains).

        The same seed gives the same draws. `progress` shows a bar on a terminal.
        """
        draws = integer("draws", draws, 1, 2**40)
        if target.dtype in (torch.float16, torch.bfloat16):
            raise UserError(f"the target is in {target.dtype}, too few digits for weights and acceptance: use float32")
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
        tests = list(self.tests(found, counted))
        if all(test.threshold is None for test in tests):  # finite log-densities alone say nothing of the draws
            tests.append(self._untested())
        scope = f"{SCOPE}; {self.caveat}"
        certificate = Certificate([*tests, counted.values_test(), *counted.edge_tests()], scope, type(self).__name__, context)
        return replace(found, certificate=certificate)

    @abstractmethod
    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        """The draws. `target` counts its calls."""

    @abstractmethod
    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        """What may be said of these draws from themselves: effective size, k-hat, R-hat, ...

        If none of them has a threshold the certificate is "incomplete".
        """

    def _untested(self) -> Test:
        text = f"{type(self).__name__} brings no test with a threshold, so nothing is known of its draws"
        return Test("agreement with the target", None, description=text)


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
    """The repr without addresses in memory."""
    return portable(repr(value))


def portable(text: str) -> str:
    """Without addresses in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", text)
