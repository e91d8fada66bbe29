"""The straight path of flow matching."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.transport.paths.base import AffinePath

__all__ = ["Linear"]


class Linear(AffinePath):
    r"""a = t, s = 1 - t: x_t = t x_1 + (1 - t) x_0, u_t = x_1 - x_0.

    Source: Flow Straight and Fast, Liu et al. 2022, arXiv 2209.03003; Flow Matching for Generative Modeling, Lipman et al.
    2022, arXiv 2210.02747.
    """

    linear = True
    convex = True

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        one = torch.ones_like(t)
        return t, 1 - t, one, -one

    def time(self, angle: Tensor) -> Tensor:
        return torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))
