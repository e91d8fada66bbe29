"""Random-walk Metropolis."""

from __future__ import annotations

from typing import Any

from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.markov import Markov

__all__ = ["Metropolis"]


class Metropolis(Markov):
    """u' = u + h L z, accepted with min(1, p~(u') / p~(u)): no gradient, one likelihood a move.

    Arguments:
        thin: moves per draw; 10 by default, since single ones are hardly different.
        others: as for `Markov`; acceptance as for `Local`.

    Source: Equation of state calculations by fast computing machines, Metropolis et al. 1953; Weak convergence and optimal
    scaling of random walk Metropolis algorithms, Roberts, Gelman and Gilks 1997.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = Metropolis()(exact.problem, 500)
    >>> found.x.shape, found.certificate.verdict
    (torch.Size([8, 500, 2]), 'passed')
    """

    def __init__(
        self, *, chains: int = 8, warmup: int = 2000, thin: int = 10, start: Any = None, mass: str | None = None,
        acceptance: float | None = None, least: float = 400.0,
    ) -> None:  # fmt: skip
        local = Local("walk", acceptance=acceptance)
        super().__init__(local, chains=chains, warmup=warmup, thin=thin, start=start, mass=mass, least=least)
