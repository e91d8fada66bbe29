"""Hamiltonian Monte Carlo in the noise of a flow prior."""

from __future__ import annotations

import math
from typing import Any

from sciflow.posterior.samplers.neutra import NeuTra
from sciflow.posterior.samplers.noise_coordinates import Noise
from sciflow.posterior.target import Target

__all__ = ["LatentHamiltonian"]


class LatentHamiltonian(NeuTra):
    r"""p(u | y) \propto N(u; 0, 1) p(y | F(u)), x = F(u), F the map of the prior's flow: no log-determinant is needed.

    Each gradient goes through the solver: choose its steps by `flow.sampling(stepper=...)`. Chains are stuck in modes as in x:
    R-hat says so, and `Tempered(noise=True)` is the cure.

    Arguments:
        as for `NeuTra`, without its flow.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = LatentHamiltonian(warmup=30)(exact.problem, 50)
    >>> found.x.shape
    torch.Size([8, 50, 2])
    """

    def __init__(
        self, *, chains: int = 8, warmup: int = 300, thin: int = 1, start: Any = None, mass: str | None = "diagonal",
        acceptance: float | None = None, length: float = math.pi / 2, leapfrog: int = 50, least: float = 400.0,
    ) -> None:  # fmt: skip
        super().__init__(None, chains=chains, warmup=warmup, thin=thin, start=start, mass=mass, acceptance=acceptance,
                         length=length, leapfrog=leapfrog, least=least)  # fmt: skip

    def coordinates(self, target: Target) -> Noise:
        return Noise(target)
