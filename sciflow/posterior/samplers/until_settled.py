"""As many moves as it takes until chains agree."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior

__all__ = ["Doubling", "UntilSettled"]

_MIXING = "R-hat"


class Doubling(Protocol):
    """A sampler with a test of mixing, and the same with twice the moves."""

    states: int

    def doubled(self) -> Any: ...

    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Any: ...

    def tests(self, found: Any, target: Any) -> Sequence[Test]: ...


class UntilSettled(Sampler):
    """The draws of a sampler whose moves are doubled, up to `doublings` times, until its R-hat is below the warning.

    Every attempt starts anew with the same seed, so that the draws are those of the last attempt called directly, and their
    certificate is its own; calls are counted over all of them. R-hat is looked at once for each attempt: of k attempts that
    have not settled, one passes by chance k times as often as one would. If none settles, the last one is returned with its
    warning.

    Arguments:
        sampler: such as `AnnealedLangevin`, with states to compare.
        doublings: the most.

    Raises `UserError` for a sampler that cannot be doubled or compares no states.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> from sciflow.posterior.samplers import AnnealedLangevin
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = UntilSettled(AnnealedLangevin(step=0.2, levels=((0.5, 4),)))(exact.problem, 8)
    >>> found.statistics["doublings"]
    2.0
    """

    def __init__(self, sampler: Doubling, doublings: int = 3) -> None:
        if not hasattr(sampler, "doubled") or not getattr(sampler, "states", 0):
            raise UserError(
                f"{sampler!r}: nothing says whether it has settled: give a sampler like AnnealedLangevin, states > 0"
            )
        self.sampler, self.doublings = sampler, integer("doublings", doublings, 0, 20)

    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Posterior:
        sampler, name = self.sampler, type(self.sampler).__name__
        for attempt in range(self.doublings + 1):
            source = Randomness(randomness.seed, name, start=randomness.start, device=target.device, dtype=target.dtype)
            found: Posterior = sampler.run(target, draws, source, progress=progress)
            if attempt == self.doublings or _settled(sampler.tests(found, target)):
                break
            sampler = sampler.doubled()
        return replace(found, statistics={**found.statistics, "doublings": float(attempt)})

    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        text = f"of the moves of {type(self.sampler).__name__}, at most {self.doublings}, until R-hat is below its warning"
        return [*self.sampler.tests(found, target), Test("doublings", found.statistics["doublings"], description=text)]


def _settled(tests: Sequence[Test]) -> bool:
    return all(test.outcome == "passed" for test in tests if test.name.startswith(_MIXING) and test.threshold is not None)
