"""Optimising the noise of the flow so that its end fits the data."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.estimators.walk import Guided, Walk
from sciflow.transport.steppers.fixed import FixedStep

__all__ = ["DFlow"]


class DFlow(Guided):
    r"""argmin over z of -log p(y | A(F(z))) - weight log q(z), F the flow from noise to data, by L-BFGS from random z.

    With weight 1 this is the mode of the posterior in the coordinates of the noise; published is a smaller weight, the
    likelihood without its noise level, and for the radius of z the density of a chi distribution.

    Arguments:
        outer, inner: calls of L-BFGS and iterations in each.
        steps: of the midpoint solver that the gradient runs through.
        weight: of the log-density of the noise.

    Source: D-Flow: Differentiating through Flows for Controlled Generation, Ben-Hamu et al. 2024, arXiv 2402.14017.
    """

    bias = "modes in the coordinates of the noise, without spread"
    right = "one component: it returns the mode of the posterior, which is its mean"

    def __init__(self, outer: int = 20, *, inner: int = 20, steps: int = 6, weight: float = 1.0, chunk: int = 1024) -> None:
        self.outer, self.inner, self.steps, self.weight, self.chunk = outer, inner, steps, weight, chunk

    def walk(self, walk: Walk) -> Tensor:
        problem, solver = walk.problem, FixedStep(self.steps, method="midpoint")
        with torch.enable_grad():
            z = walk.normal().requires_grad_()
            optimiser = torch.optim.LBFGS([z], max_iter=self.inner, line_search_fn="strong_wolfe")

            def loss() -> Tensor:
                optimiser.zero_grad()
                end = solver.solve(walk.field, z, 0.0, 1.0).x
                problem.calls.gradient += len(z)
                problem.calls.velocity_gradient += len(z) * 2 * self.steps
                total = 0.5 * self.weight * z.square().sum() - problem.log_likelihood(end).sum()
                total.backward()
                return total

            for _ in range(self.outer):
                optimiser.step(loss)  # type: ignore[arg-type]
        with torch.no_grad():
            return solver.solve(walk.field, z.detach(), 0.0, 1.0).x
