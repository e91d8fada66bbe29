"""Metropolis-adjusted Langevin."""

from __future__ import annotations

from typing import Any

from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.markov import Markov

__all__ = ["Langevin"]


class Langevin(Markov):
    r"""u' = u + h^2 / 2 L L' grad log p~(u) + h L z, with the Metropolis correction: one gradient a move (MALA).

    Arguments:
        thin: moves per draw.
        others: as for `Markov`; acceptance as for `Local`.

    Source: Exponential convergence of Langevin distributions and their discrete approximations, Roberts and Tweedie 1996.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = Langevin()(exact.problem, 400)
    >>> found.x.shape, found.certificate.verdict
    (torch.Size([8, 400, 2]), 'passed')
    """

    def __init__(
        self, *, chains: int = 8, warmup: int = 1000, thin: int = 3, start: Any = None, mass: str | None = None,
        acceptance: float | None = None, least: float = 400.0,
    ) -> None:  # fmt: skip
        local = Local("langevin", acceptance=acceptance)
        super().__init__(local, chains=chains, warmup=warmup, thin=thin, start=start, mass=mass, least=least)
