"""Gradient steps on the expected endpoint, blended with it, and renewed noise."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.estimators.flow_chef import default_step
from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["FlowDPS"]


class FlowDPS(Guided):
    r"""D_y = D after `gradients` steps on |y - A(D)|^2 / 2; D <- (1 - s) D + s D_y; N <- sqrt(s') N + sqrt(1 - s') z;
    x = a' D + s' N at the next time, whose noise level is s'.

    Arguments:
        steps: number of steps.
        gradients: gradient steps per time.
        step: of the gradient; by default from the singular values, see `FlowChef`. Published: 30 and 15 on images.

    Source: FlowDPS: Flow-Driven Posterior Sampling for Inverse Problems, Kim, Kim and Ye 2025, arXiv 2503.08136.
    """

    bias = "the noise level does not enter, and the blend with the endpoint is a heuristic"
    right = "one component and vanishing noise, as the number of steps grows: what is measured tends to the data"

    def __init__(self, steps: int = 28, *, gradients: int = 3, step: float | None = None, chunk: int = 2**14) -> None:
        self.steps, self.gradients, self.step, self.chunk = steps, gradients, step, chunk

    def walk(self, walk: Walk) -> Tensor:
        step = 2 * default_step(walk) if self.step is None else self.step
        x = walk.normal()
        with torch.no_grad():
            for t, u in steps_of(self.steps):
                endpoint, noise = walk.ends(t, x)
                fitted = endpoint
                for _ in range(self.gradients):
                    fitted = fitted + step * walk.residual_gradient(fitted)
                _, s = walk.at(t, x)
                a, later = walk.at(u, x)
                mixed = later.sqrt() * noise + (1 - later).clamp_min(0).sqrt() * walk.normal()
                x = a * ((1 - s) * endpoint + s * fitted) + later * mixed
        return x
