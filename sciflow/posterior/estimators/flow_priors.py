"""The mode of the flow's trajectory, found one time after the other."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["FlowPriors"]


class FlowPriors(Guided):
    r"""At each time t -> u, `iterations` Adam steps on x_t for

        (u - t) tr dv/dx - log p(y_u | A(x_t + (u - t) v)) [+ |x|^2 / 2 at t = 0],   y_u = a(u) y + s(u) A(x_0),

    then one Euler step. The trace is estimated with one probe. The misfit has the noise level of the data unless `weight`
    replaces 1 / sigma^2 (published: 1000).

    Source: Flow Priors for Linear Inverse Problems via Iterative Corrupted Trajectory Matching, Zhang et al. 2024,
    arXiv 2405.18816.
    """

    bias = "an incremental mode of the trajectory, without spread"
    right = "one component and vanishing noise, with enough iterations: what is measured equals the data"

    def __init__(
        self, steps: int = 100, *, iterations: int = 1, rate: float = 1e-2, weight: float | None = None, chunk: int = 2**12
    ) -> None:
        self.steps, self.iterations, self.rate, self.weight, self.chunk = steps, iterations, rate, weight, chunk

    def walk(self, walk: Walk) -> Tensor:
        start = x = walk.normal()
        weight = 1 / walk.sigma**2 if self.weight is None else self.weight
        for k, (t, u) in enumerate(steps_of(self.steps)):
            with torch.no_grad():
                a, s = walk.at(u, x)
                shape = (len(x), *[1] * (walk.y.dim()))
                y = a.expand(len(x), *[1] * (x.dim() - 1)).reshape(shape) * walk.y
                y = y + s.expand(len(x), *[1] * (x.dim() - 1)).reshape(shape) * walk.operator(start)
            x = self._mode(walk, x, y, t, u, weight, first=k == 0)
            with torch.no_grad():
                x = x + (u - t) * walk.field(x.new_full((), t), x)
        return x

    def _mode(self, walk: Walk, x: Tensor, y: Tensor, t: float, u: float, weight: float, *, first: bool) -> Tensor:
        with torch.enable_grad():
            point = x.detach().clone().requires_grad_()
            optimiser = torch.optim.Adam([point], lr=self.rate)
            for _ in range(self.iterations):
                probe = walk.normal().sign()
                v = walk.field(point.new_full((), t), point)
                (pulled,) = torch.autograd.grad(v, point, probe, create_graph=True)
                misfit = (y - walk.operator(point + (u - t) * v)).abs().square()
                loss = (u - t) * (pulled * probe).sum() + 0.5 * weight * misfit.sum()
                if first:
                    loss = loss + 0.5 * point.square().sum()
                optimiser.zero_grad()
                loss.backward()
                optimiser.step()
                walk.problem.calls.gradient += len(x)
                walk.problem.calls.velocity_gradient += 2 * len(x)
        return point.detach()
