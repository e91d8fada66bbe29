"""Steps fitted to a trained flow."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise, product
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.condition import Condition
from sciflow.transport.steppers.fixed import FixedStep

if TYPE_CHECKING:
    from sciflow.transport.flow import TransportFlow

__all__ = ["bellman_steps"]


@torch.no_grad()
def bellman_steps(
    flow: TransportFlow, steps: int, condition: Condition = None, *, method: str = "euler", rows: int = 256, fine: int = 32,
    refine: bool = True, mask: Tensor | None = None, seed: int = 0,
) -> FixedStep:  # fmt: skip
    r"""The `steps` steps of a Runge-Kutta method that follow a trained flow best, for `flow.sampling(stepper=...)`.

    Along `rows` finely solved trajectories x(t) the cost of a step from t_i to t_j is the mean of |step(x(t_i)) - x(t_j)|^2;
    Bellman's recursion finds the way 0 = t_0 < ... < t_K = 1 of the least sum over a grid of `fine` intervals. It takes
    fine (fine + 1) / 2 steps of the method on the rows, once; the flow is not trained further.

    Local errors are carried on and add up by the flow, which their sum does not know: it can be worse than equal steps. So
    with `refine` the better of both ways is taken, and single times are moved on the grid as long as the mean square
    distance of the ends from x(1) falls. This is not in the paper.

    Arguments:
        steps: K.
        condition: of the trajectories, its rows repeated in turn; what the steps are to be good for.
        method: of `TABLEAUS`.
        fine: intervals of the grid, at least K.
        refine: go on from the paper's optimum to the least error at the end.
        mask: (rows, *event), present features.
        seed: of the trajectories' noise.

    Source: Bellman Optimal Stepsize Straightening of Flow-Matching Models, Nguyen et al. 2023, arXiv 2312.16414 (its
    first part; the second, retraining on the steps found, is `PiecewiseReflow` with equal windows).
    """
    from sciflow.transport.reflow import reflow_pairs  # it needs the flow, which needs the steppers

    if not 1 <= steps <= fine:
        raise UserError(f"steps={steps}, fine={fine}: the grid needs at least as many intervals as there are steps")
    start = reflow_pairs(flow, rows, condition, mask=mask, stepper=FixedStep(1), seed=seed)
    assert start.source is not None
    context = flow.encoder(start.condition)
    field = flow.field(None if context is None else context.to(start.source), start.mask)
    grid = [k / fine for k in range(fine + 1)]
    exact, one = FixedStep(2, method="rk4"), FixedStep(1, method=method)
    points = [start.source]
    for t, s in pairwise(grid):
        points.append(exact.solve(field, points[-1], t, s).x)
    cost = torch.full((fine + 1, fine + 1), torch.inf, dtype=torch.float64)
    for i in range(fine):
        errors = [(one.solve(field, points[i], grid[i], grid[j]).x - points[j]).square().mean() for j in range(i + 1, fine + 1)]
        cost[i, i + 1 :] = torch.stack(errors).cpu()
    if not bool(torch.isfinite(cost[0, 1:]).all()):
        raise UserError("the flow's trajectories are not finite: train it before its steps are fitted")
    best, before = cost[0], []
    for _ in range(steps - 1):
        best, origin = (best.unsqueeze(1) + cost).min(0)
        before.append(origin)
    way = [fine]
    for origin in reversed(before):
        way.insert(0, int(origin[way[0]]))
    way = [0, *way]

    def error(way: list[int]) -> float:
        found = FixedStep([grid[k] for k in way], method=method).solve(field, points[0], 0.0, 1.0).x
        return float((found - points[-1]).square().mean())

    return FixedStep([grid[k] for k in (_refined(way, fine, error) if refine else way)], method=method)


def _refined(way: list[int], fine: int, error: Callable[[list[int]], float]) -> list[int]:
    """The better of the way and equal steps, its inner times moved by one as long as that helps."""
    steps = len(way) - 1
    least, way = min((error(w), w) for w in (way, [round(k * fine / steps) for k in range(steps + 1)]))
    moved = True
    while moved:
        moved = False
        for k, by in product(range(1, steps), (-1, 1)):
            other = [*way[:k], way[k] + by, *way[k + 1 :]]
            if other[k - 1] < other[k] < other[k + 1] and (found := error(other)) < least:
                least, way, moved = found, other, True
    return way
