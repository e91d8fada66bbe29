"""Hamiltonian Monte Carlo in the noise of a flow that was trained on the target."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.markov import Markov
from sciflow.posterior.samplers.noise_coordinates import Noise
from sciflow.posterior.samplers.starts import chain_starts
from sciflow.posterior.target import Target

__all__ = ["NeuTra"]


class NeuTra(Markov):
    r"""Trajectories in u with x = F(u): log p~(u) = log p~(F(u)) + log |det dF/du|.

    The flow cures bad geometry. It does not cure separated modes: a mode that the flow does not reach is as far as before, and
    R-hat sees it only if chains start there. For modes use `Tempered(flow)`, or independence moves.

    Arguments:
        flow: trained on the target (by whatever means: it enters the geometry only), over unconstrained coordinates.
        start: as for `Markov`; draws of the flow by default.
        length, leapfrog, acceptance: as for `Local`.
        others: as for `Markov`; masses are diagonal, in u.

    Source: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport, Hoffman et al. 2019, arXiv 1903.03704.
    """

    def __init__(
        self, flow: Any, *, chains: int = 8, warmup: int = 300, thin: int = 1, start: Any = None,
        mass: str | None = "diagonal", acceptance: float | None = None, length: float = math.pi / 2, leapfrog: int = 50,
        least: float = 400.0,
    ) -> None:  # fmt: skip
        local = Local("hamiltonian", acceptance=acceptance, length=length, leapfrog=leapfrog)
        super().__init__(local, chains=chains, warmup=warmup, thin=thin, start=start, mass=mass, least=least)
        self.flow = flow

    def coordinates(self, target: Target) -> Noise:
        return Noise(target, self.flow)

    def begin(self, space: Noise, target: Target, randomness: Randomness) -> Tensor:
        if self.start is None:
            return space.draw(self.chains, randomness)
        return space.unconstrain(chain_starts(self.start, target, self.chains, randomness)).detach()
