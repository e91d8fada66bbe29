"""Uniform bases on boxes and circles."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.distributions.base import Base
from sciflow.errors import UserError

__all__ = ["BoxUniform", "CircleUniform"]


class BoxUniform(Base):
    r"""p(z) = prod_j 1 / (high_j - low_j) inside the box, 0 outside.

    Raises `UserError` if a lower edge is not below its upper edge.

    >>> BoxUniform([0.0, 0.0], [1.0, 2.0]).log_prob(torch.tensor([[0.5, 0.5], [2.0, 0.5]]))
    tensor([-0.6931,    -inf])
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Sequence[float], high: Sequence[float]) -> None:
        super().__init__()
        if len(low) != len(high) or not all(a < b for a, b in zip(low, high, strict=True)):
            raise UserError(f"a box needs lower edges below its upper edges, got low={list(low)} and high={list(high)}")
        self.event_shape = torch.Size((len(low),))
        self.register_buffer("low", torch.tensor([float(edge) for edge in low], dtype=torch.float64))
        self.register_buffer("high", torch.tensor([float(edge) for edge in high], dtype=torch.float64))

    @property
    def uniforms(self) -> int:
        return len(self.low)

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        low, high = self.low.double(), self.high.double()
        z = low + (high - low) * uniform
        return z if mask is None else torch.where(mask, z, 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        low, high = self.low.to(z.dtype), self.high.to(z.dtype)
        inside = (z >= low) & (z <= high)
        density = torch.where(inside, -torch.log(high - low), -torch.inf)
        if mask is not None:
            density = torch.where(mask, density, 0)
        return density.sum(-1)


class CircleUniform(Base):
    r"""p(z) = (2 bound)^-features for points on circles of circumference 2 bound, written as numbers in [-bound, bound).

    Numbers outside stand for the same points and have the same density. `circles` tells flows which features are
    angles: {feature: half period}.

    >>> CircleUniform(1, bound=2.0).log_prob(torch.zeros(1, 1))
    tensor([-1.3863])
    """

    def __init__(self, features: int, bound: float = math.pi) -> None:
        super().__init__()
        self.event_shape = torch.Size((features,))
        self.bound = float(bound)
        self.circles = {feature: self.bound for feature in range(features)}

    @property
    def uniforms(self) -> int:
        return self.event_shape[0]

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        z = (2 * uniform - 1) * self.bound
        return z if mask is None else torch.where(mask, z, 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        density = torch.full_like(z, -math.log(2 * self.bound))
        if mask is not None:
            density = torch.where(mask, density, 0)
        return density.sum(-1)
