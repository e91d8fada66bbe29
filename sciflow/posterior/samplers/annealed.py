"""Annealed importance sampling: a stochastic flow without flows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sciflow.errors import UserError
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.posterior.samplers.annealed_schedule import Schedule, pilot
from sciflow.posterior.samplers.annealed_transition import Transition
from sciflow.posterior.samplers.drift import ROUNDS
from sciflow.posterior.samplers.stochastic_flow import StochasticFlow

__all__ = ["AnnealedImportance"]


class AnnealedImportance(StochasticFlow):
    r"""Draws of the base moved through p_b \propto q (p~ / q)^b, b from 0 to 1, weighted along the path: E[w] = Z exactly.

    A pilot run, whose particles are not used otherwise, finds the temperatures and tunes the moves.

    Arguments:
        base: normalised; the prior of a `Problem` by default, needed for an `Energy`.
        betas: inverse temperatures, increasing to 1; found by the pilot by default.
        share: conditional effective share between two temperatures of the pilot: the closer to 1, the more of them.
        transition, replicates, pilot, least, further: as for `StochasticFlow`.

    Source: Annealed importance sampling, Neal 2001, physics/9803008.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = AnnealedImportance()(exact.problem, 500)
    >>> abs(found.evidence.log_value - exact.log_evidence) < 4 * found.evidence.error
    True
    """

    label = "annealed importance sampling"

    def __init__(
        self, base: Any = None, *, betas: Sequence[float] | None = None, share: float = 0.97,
        transition: Transition | None = None, replicates: int = 16, pilot: int = 500, least: float = 100.0,
        further: int = ROUNDS,
    ) -> None:  # fmt: skip
        if not 0 < share < 1:
            raise UserError(f"share={share}: give a share of the particles between 0 and 1")
        if not pilot and betas is None:
            raise UserError("pilot=0 without betas: nobody knows the temperatures; give betas or a pilot")
        super().__init__((), (1.0,) if betas is None else betas, base=base, transition=transition, replicates=replicates,
                         pilot=pilot, least=least, further=further)  # fmt: skip
        self.share, self.adaptive = share, betas is None

    def schedule(self, bridge: Bridge, draws: int, randomness: Randomness) -> Schedule:
        if not self.adaptive:
            return super().schedule(bridge, draws, randomness)
        return pilot(bridge, self.transition, self.pilot, randomness, share=self.share)
