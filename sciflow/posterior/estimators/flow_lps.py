"""Langevin steps around the expected endpoint, a proximal step to the data, renewed noise."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["FlowLPS"]


class FlowLPS(Guided):
    r"""At each time: `langevin` Langevin steps on N(x_1; D, r^2 1) p(y | A x_1) from D, then the proximal point

        argmin |y - A x|^2 / (2 sigma^2) + |x - x_1|^2 / (2 r^2),   r^2 = s^2 / (a^2 + s^2),

    and x = a' x_1 + s' (sqrt(1 - renew^2) N + renew z) at the next time, a preconditioned Crank-Nicolson move of the noise.

    Arguments:
        steps: number of steps.
        langevin: Langevin steps per time; `step` is theirs, in units of the smaller of r^2 and sigma^2 over the squared norm.
        proximal: False leaves the proximal step out.
        renew: share of new noise, in [0, 1].

    Built from the description in the paper; its schedules of step sizes and budgets are not.

    Source: FlowLPS: Langevin-Proximal Sampling for Flow-based Inverse Problem Solvers, Park and Ye 2025, arXiv 2512.07150.
    """

    bias = "the proximal step seeks the mode, and x_1 given x_t is taken for normal"
    right = "one component and vanishing noise: what is measured equals the data"

    def __init__(
        self, steps: int = 28, *, langevin: int = 5, step: float = 0.2, proximal: bool = True, renew: float = 0.5,
        chunk: int = 2**14,
    ) -> None:  # fmt: skip
        if not 0 <= renew <= 1 or langevin < 0 or not step > 0:
            raise UserError(f"langevin={langevin}, step={step}, renew={renew}: give langevin >= 0, step > 0, renew in [0, 1]")
        self.steps, self.langevin, self.step, self.proximal = steps, langevin, step, proximal
        self.renew, self.chunk = renew, chunk

    def walk(self, walk: Walk) -> Tensor:
        x, variance = walk.normal(), walk.sigma**2
        values = walk.linear.singular_values()
        norm = 1.0 if values is None else float(values.max()) ** 2
        with torch.no_grad():
            for t, u in steps_of(self.steps):
                endpoint, noise = walk.ends(t, x)
                a, s = (entry.reshape(-1) for entry in walk.at(t, x))
                spread = float(s[0] ** 2 / (a[0] ** 2 + s[0] ** 2))
                h = self.step / (1 / spread + norm / variance)
                point = endpoint
                for _ in range(self.langevin):
                    drift = (endpoint - point) / spread + walk.residual_gradient(point) / variance
                    point = point + h * drift + math.sqrt(2 * h) * walk.normal()
                if self.proximal:
                    pull = walk.linear.adjoint(walk.y - walk.linear(point)).to(x.dtype)
                    point = point + walk.linear.normal_solve(pull, variance / spread)
                later_a, later_s = walk.at(u, x)
                mixed = math.sqrt(1 - self.renew**2) * noise + self.renew * walk.normal()
                x = later_a * point + later_s * mixed
        return x
