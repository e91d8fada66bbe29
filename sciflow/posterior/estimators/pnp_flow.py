"""Plug and play: a gradient step on the data, then the mean of denoised interpolations."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.posterior.estimators.flow_chef import default_step
from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["PnPFlow"]


class PnPFlow(Guided):
    r"""z = x + rate (1 - t)^power A'(y - A x); x <- mean over `averages` of D_t(a z + s e), e ~ N(0, 1).

    The published step is proportional to sigma^2, which cancels that of the likelihood: the noise level does not enter.

    Source: PnP-Flow: Plug-and-Play Image Restoration with Flow Matching, Martin et al. 2024, arXiv 2410.02423.
    """

    bias = "a point estimate with a random start: the noise level cancels, averages shrink the spread"
    right = "data that say nothing and one component: its mean is the mean of the prior"

    def __init__(
        self, steps: int = 100, *, averages: int = 5, rate: float | None = None, power: float = 1.0, chunk: int = 2**14
    ) -> None:
        self.steps, self.averages = integer("steps", steps, 1, 2**30), integer("averages", averages, 1, 2**20)
        self.rate, self.power, self.chunk = rate, power, chunk

    def walk(self, walk: Walk) -> Tensor:
        rate = 4 * default_step(walk) if self.rate is None else self.rate
        x = walk.normal()
        with torch.no_grad():
            for t, _ in steps_of(self.steps):
                z = x + rate * (1 - t) ** self.power * walk.residual_gradient(x)
                a, s = walk.at(t, x)
                x = sum(walk.ends(t, a * z + s * walk.normal())[0] for _ in range(self.averages)) / self.averages  # type: ignore[assignment]
        return x
