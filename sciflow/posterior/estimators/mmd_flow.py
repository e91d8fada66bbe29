"""Gradient flow of the energy distance between particles and simulated pairs."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.estimators.conditional_particles import ConditionalParticles
from sciflow.posterior.randomness import Randomness

__all__ = ["MMDFlow"]

_ELEMENTS = 2**22  # of a block of differences


class MMDFlow(ConditionalParticles):
    r"""v(p) = -grad_x [ mean_j |p - d_j| - mean_i |p - p_i| ] for particles p_i and pairs d_j in (x, y), x moving alone.

    The maximum mean discrepancy with the negative distance kernel K(a, b) = -|a - b| (Riesz kernel, energy distance).

    Arguments: as for `ConditionalParticles`.

    Source: Posterior sampling based on gradient flows of the MMD with negative distance kernel, Hagemann et al. 2023, arXiv
    2310.03054.
    """

    bias = "draws of a conditional smoothed over neighbouring data; the flow may stop before the joint distance is zero"
    right = "few dimensions and many simulations near the observation, for posteriors that change slowly with the data"

    def velocity(self, query: Tensor, population: Tensor, pairs: Tensor, features: int, randomness: Randomness) -> Tensor:
        return _attraction(query, pairs, features) - _attraction(query, population, features)


def _attraction(query: Tensor, points: Tensor, features: int) -> Tensor:
    """mean_j (d_j - p) / |d_j - p| in the first columns (M, features)."""
    block = max(1, _ELEMENTS // max(points.numel(), 1))
    parts = []
    for rows in query.split(block):
        distance = torch.cdist(rows, points, compute_mode="donot_use_mm_for_euclid_dist")
        weight = torch.where(distance > 1e-12, 1 / distance.clamp_min(1e-12), 0) / len(points)
        parts.append(weight @ points[:, :features] - weight.sum(1, keepdim=True) * rows[:, :features])
    return torch.cat(parts)
