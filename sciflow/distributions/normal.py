"""The standard normal base."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.distributions.base import Base
from sciflow.noise import normal_from_uniform
from sciflow.shapes import shape_of

__all__ = ["DiagonalNormal"]


class DiagonalNormal(Base):
    r"""N(0, 1) in every feature: log p(z) = -sum_j (z_j^2 + log 2 pi) / 2.

    >>> base = DiagonalNormal(2)
    >>> base.log_prob(torch.zeros(1, 2, dtype=torch.float64))
    tensor([-1.8379], dtype=torch.float64)
    """

    def __init__(self, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)

    @property
    def uniforms(self) -> int:
        return math.prod(self.event_shape)

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        z = normal_from_uniform(uniform).reshape(-1, *self.event_shape)
        return z if mask is None else z * mask

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        z = torch.randn(rows, *self.event_shape, device=device, dtype=dtype)
        return z if mask is None else z * mask

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        density = (z.square() + math.log(2 * math.pi)) * -0.5
        if mask is not None:
            density = density * mask
        return density.flatten(1).sum(1)
