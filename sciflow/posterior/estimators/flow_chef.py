"""Gradient steps on the data misfit, without the Jacobian of the denoiser."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["FlowChef"]


class FlowChef(Guided):
    r"""x_u = a D + s N - step grad_D |y - A(D)|^2 with D = E[x_1 | x_t], N = E[x_0 | x_t], from t to u.

    Arguments:
        steps: number of steps.
        step: of the gradient; the published scripts use 50 and 15 on images in a normalised misfit. By default half the inverse
            of the largest squared singular value, where it is known, else 0.25.

    Source: FlowChef: Steering Rectified Flow Models in the Vector Field for Controlled Image Generation, Patel et al. 2024,
    arXiv 2412.00100.
    """

    bias = "the noise level does not enter: it seeks points without misfit"
    right = "one component and vanishing noise: what is measured equals the data"

    def __init__(self, steps: int = 28, *, step: float | None = None, chunk: int = 2**14) -> None:
        self.steps, self.step, self.chunk = integer("steps", steps, 1, 2**30), step, chunk

    def walk(self, walk: Walk) -> Tensor:
        step = 2 * default_step(walk) if self.step is None else self.step
        x = walk.normal()
        with torch.no_grad():
            for t, u in steps_of(self.steps):
                endpoint, noise = walk.ends(t, x)
                a, s = walk.at(u, x)
                x = a * endpoint + s * noise + 2 * step * walk.residual_gradient(endpoint)
        return x


def default_step(walk: Walk) -> float:
    """A quarter of the inverse of the largest squared singular value, where it is known; else 1 / 4 for operators of norm 1."""
    values = walk.operator.singular_values() if hasattr(walk.operator, "singular_values") else None  # type: ignore[operator]
    return 0.25 if values is None or not float(values.max()) > 0 else 0.25 / float(values.max()) ** 2  # type: ignore[union-attr]
