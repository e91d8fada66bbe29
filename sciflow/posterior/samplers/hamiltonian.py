"""Hamiltonian Monte Carlo."""

from __future__ import annotations

import math
from typing import Any

from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.markov import Markov

__all__ = ["Hamiltonian"]


class Hamiltonian(Markov):
    """Trajectories of random length through momentum space: the best plain chain where gradients exist.

    Arguments:
        length, leapfrog, acceptance: as for `Local`.
        others: as for `Markov`.

    Source: MCMC using Hamiltonian dynamics, Neal 2011, arXiv 1206.1901.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = Hamiltonian(warmup=200)(exact.problem, 200)
    >>> found.x.shape, found.certificate.verdict
    (torch.Size([8, 200, 2]), 'passed')
    """

    def __init__(
        self, *, chains: int = 8, warmup: int = 500, thin: int = 1, start: Any = None, mass: str | None = None,
        acceptance: float | None = None, length: float = math.pi / 2, leapfrog: int = 50, least: float = 400.0,
    ) -> None:  # fmt: skip
        local = Local("hamiltonian", acceptance=acceptance, length=length, leapfrog=leapfrog)
        super().__init__(local, chains=chains, warmup=warmup, thin=thin, start=start, mass=mass, least=least)
