"""A flow conditional on the simulated event, trained without pairs and kept honest by constraints."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, Constrained, Constraint, MaximumLikelihood, Objective

__all__ = ["Identified", "identified", "matched_rows", "maximum_mean_discrepancy"]

_FAR = 1e3  # standard deviations: categories are never neighbours


class Identified(NamedTuple):
    """What makes p(y | x_sim, c) depend on x_sim although no event of the data belongs to one of the simulation.

    Attributes:
        tolerance: bound on the mean of \\|y - x_sim\\| over features, in standard deviations of the features. Independent
            draws from one normal distribution have 1.13; None for no bound, and then nothing ties y to x_sim.
        discrepancy: bound on the squared maximum mean discrepancy of (y, c) between corrected simulation and data.
        neighbours: a data event is matched with one of its nearest simulated events in the conditions, at random.
        matches: how many such pairs are made of each data event.
    """

    tolerance: float | None = 0.6
    discrepancy: float | None = 2e-3
    neighbours: int = 50
    matches: int = 3


def matched_rows(
    sim: NDArray, data: NDArray, weight: NDArray, *, neighbours: int, matches: int, seed: int
) -> NDArray[np.int64]:
    """For each row of the data (N, C) and match, a simulated row at nearly the same condition: (matches, N).

    The row is drawn from the nearest `neighbours` with probability proportional to its weight (M,) >= 0; rows without
    weight never occur.

    >>> matched_rows(np.array([[0.0], [1.0]]), np.array([[0.9]]), np.ones(2), neighbours=1, matches=2, seed=0)
    array([[1],
           [1]])
    """
    used = np.flatnonzero(weight > 0)
    if len(used) == 0:
        raise UserError("every simulated event has weight 0: there is nothing to match the data with")
    rng = np.random.default_rng(seed)
    count = min(neighbours, len(used))
    near = None
    if sim.shape[1] > 0:
        near = used[cKDTree(sim[used]).query(data, k=count)[1].reshape(len(data), count)]
    found = np.empty((matches, len(data)), np.int64)
    for match in range(matches):
        if near is None:
            found[match] = rng.choice(used, len(data), p=weight[used] / weight[used].sum())
            continue
        total = weight[near].cumsum(1)
        place = (total < rng.uniform(size=(len(data), 1)) * total[:, -1:]).sum(1)
        found[match] = near[np.arange(len(data)), np.minimum(place, count - 1)]
    return found


def maximum_mean_discrepancy(x: Tensor, y: Tensor, weight: Tensor | None = None) -> Tensor:
    r"""Unbiased squared MMD between rows x (N, D) and y (N, D), both weighted by weight (N,); shape ().

    The kernel is the mean of three normal ones whose variances are D/4, D and 4 D. It fluctuates around 0 by about 1/N
    where the distributions agree. Source: A Kernel Two-Sample Test, Gretton et al., JMLR 13 (2012) 723.
    """
    weight = x.new_ones(len(x)) if weight is None else weight
    pair = weight[:, None] * weight
    pair = pair - torch.diag(torch.diagonal(pair))
    pair = pair / pair.sum()

    def kernel(a: Tensor, b: Tensor) -> Tensor:
        distance = (a.square().sum(1)[:, None] + b.square().sum(1) - 2 * a @ b.T).clamp_min(0) / a.shape[1]
        return (torch.exp(-2 * distance) + torch.exp(-distance / 2) + torch.exp(-distance / 8)) / 3

    return (pair * (kernel(x, x) + kernel(y, y) - kernel(x, y) - kernel(x, y).T)).sum()


class _Draws:
    """One draw per row of the batch at hand, shared by the constraints."""

    def __init__(self) -> None:
        self.batch: Batch | None = None
        self.y = torch.empty(0)

    def __call__(self, flow: nn.Module, batch: Batch) -> Tensor:
        if self.batch is not batch or torch.is_grad_enabled() != self.y.requires_grad:
            given = flow(batch.condition) if batch.mask is None else flow(batch.condition, batch.mask)
            self.batch, self.y = batch, given.rsample()
        return self.y


def identified(settings: Identified, features: int, context: int) -> Objective:
    r"""Maximum likelihood of data events given matched simulated ones, under the constraints of `settings`.

    minimise  -E log p(z_data | z_sim, c)   subject to   E|y - z_sim| <= tolerance,  MMD^2((y, c), (z_data, c)) <= discrepancy

    with y ~ p(. | z_sim, c). The pairs (z_data, z_sim) share their condition only, so the likelihood alone is best where
    y ignores z_sim; the first constraint forbids that, the second keeps the distribution of y right meanwhile.
    The condition of the batch is (c, z_sim, mask), with z_sim behind `context` columns.

    Source: Transforming Simulation to Data Without Pairing, Gendreau-Distler, Le Pottier and Wang 2025, arXiv 2504.12343.
    """
    draws = _Draws()

    def distance(flow: nn.Module, batch: Batch) -> Tensor:
        step = (draws(flow, batch) - batch.condition[:, context : context + features]).abs()
        present = torch.ones_like(step) if batch.mask is None else batch.mask.to(step.dtype)
        weight = present if batch.weight is None else present * batch.weight[:, None]
        return (weight * step).sum() / weight.sum()

    def discrepancy(flow: nn.Module, batch: Batch) -> Tensor:
        y, condition = draws(flow, batch), batch.condition[:, :context]
        return maximum_mean_discrepancy(torch.cat([y, condition], 1), torch.cat([batch.x, condition], 1), batch.weight)

    constraints = []
    if settings.tolerance is not None:
        unit = "standard deviations"
        constraints.append(Constraint.maximum(distance, settings.tolerance, name="mean |y - x_sim|", unit=unit, scale=0.1))
    if settings.discrepancy is not None:
        constraints.append(Constraint.maximum(discrepancy, settings.discrepancy, name="MMD^2"))
    likelihood = MaximumLikelihood()
    return Constrained(likelihood, constraints, rate=0.05) if constraints else likelihood


def conditional_batch(
    z: Tensor, context: Tensor, weight: Tensor, mask: Tensor | None, rows: int, settings: Identified, categories: int, seed: int
) -> tuple[Batch, Tensor]:
    """Pairs for the conditional method from standardised rows, the first `rows` of them simulated; and the data row of each."""
    place = context.clone().double().numpy()
    if categories > 1:
        place[:, -categories:] *= _FAR
    found = matched_rows(
        place[:rows], place[rows:], weight[:rows].double().numpy(),
        neighbours=settings.neighbours, matches=settings.matches, seed=seed,
    ).reshape(-1)  # fmt: skip
    own = torch.arange(rows, len(z)).repeat(settings.matches)
    partner = torch.from_numpy(found)
    parts: list[Any] = [context[own], z[partner]]
    if mask is not None:
        # what the simulated event lacks cannot be corrected, what the data event lacks cannot teach
        parts.append(mask[own].to(z.dtype))
    return Batch(z[own], torch.cat(parts, 1), weight[own], None if mask is None else mask[own]), own
