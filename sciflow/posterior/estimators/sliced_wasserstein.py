"""Sliced-Wasserstein flow between particles and simulated pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.posterior.estimators.conditional_particles import ConditionalParticles
from sciflow.posterior.randomness import Randomness

__all__ = ["SlicedWasserstein"]


class SlicedWasserstein(ConditionalParticles):
    r"""v(p) = (n / L) sum_l (Q_l(F_l(<p, e_l>)) - <p, e_l>) e_l over random directions e_l in (x, y), x moving alone.

    F_l is the distribution function of the population's projections, Q_l the quantile function of those of the pairs.

    Arguments:
        directions: per step.
        others: as for `ConditionalParticles`.

    Source: Nonparametric Generative Modeling with Conditional Sliced-Wasserstein Flows, Du et al. 2023, arXiv 2305.02164.
    """

    bias = "draws of a conditional smoothed over neighbouring data; the joint flow keeps data in place only under conditions"
    right = "few dimensions and many simulations near the observation, for posteriors that change slowly with the data"

    def __init__(
        self, simulations: int = 2000, *, directions: int = 16, steps: int = 300, step: float = 0.2, data_weight: float = 2.0
    ) -> None:
        super().__init__(simulations, steps=steps, step=step, data_weight=data_weight)
        self.directions = integer("directions", directions, 1, 2**20)

    def velocity(self, query: Tensor, population: Tensor, pairs: Tensor, features: int, randomness: Randomness) -> Tensor:
        size = query.shape[1]
        e = randomness.normal(self.directions, (size,), query.dtype)
        e = e / e.norm(dim=1, keepdim=True)
        mine = (population @ e.T).sort(0)[0].T.contiguous()  # (L, N)
        theirs = (pairs @ e.T).sort(0)[0].T.contiguous()
        place = (query @ e.T).T.contiguous()
        above = torch.searchsorted(mine, place)
        # mid-ranks, so that a particle of the population goes to the pair of its own rank
        rank = 0.5 * (above + torch.searchsorted(mine, place, right=True)) / mine.shape[1] * theirs.shape[1] - 0.5
        low = rank.floor().long().clamp(0, theirs.shape[1] - 1)
        high = (low + 1).clamp_max(theirs.shape[1] - 1)
        share = (rank - low).clamp(0, 1)
        goal = theirs.gather(1, low) * (1 - share) + theirs.gather(1, high) * share
        return size / self.directions * (goal - place).T @ e[:, :features]
