"""The flat torus."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.base import Space
from sciflow.transport.spaces.constants import per_feature

__all__ = ["Torus"]


class Torus(Space):
    r"""Every feature is an angle with a period: x and x + period are one point, written in [-period/2, period/2).

    Arguments:
        period: one for all features, or one for each along the last axis of the event, in the units of the features.

    Networks see cos and sin of 2 pi x / period. Source: Flow Matching on General Geometries, Chen and Lipman 2023,
    arXiv 2302.03660.

    >>> Torus(360.0).log(torch.tensor([[170.0]]), torch.tensor([[-170.0]]))
    tensor([[20.]])
    """

    def __init__(self, period: float | Sequence[float] = 2 * math.pi) -> None:
        self.period = period
        self._all = [period] if isinstance(period, (int, float)) else list(period)
        if not self._all or not all(0 < p < math.inf for p in self._all):
            raise UserError(f"period={period!r}: periods are positive and finite; put features without one into a ProductSpace")

    def project(self, x: Tensor) -> Tensor:
        period = per_feature(self.period, x)
        return x - period * torch.floor(x / period + 0.5)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self.project(y - x)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.project(x + v)

    def width(self, size: int) -> int:
        self._periods(size)
        return 2 * size

    def embed(self, x: Tensor) -> Tensor:
        angle = x * (2 * math.pi / per_feature(self.period, x))
        return torch.cat([torch.cos(angle), torch.sin(angle)], -1)

    def embed_mask(self, mask: Tensor) -> Tensor:
        return torch.cat([mask, mask], -1)

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        scale = per_feature(self.period, x) / (2 * math.pi)
        along, across = u.chunk(2, -1)
        return scale * (torch.cos(x / scale) * across - torch.sin(x / scale) * along)

    def uniforms(self, size: int) -> int:
        return size

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        return (uniform - 0.5) * per_feature(self.period, uniform)

    def present_log_volume(self, mask: Tensor) -> Tensor:
        return (mask.double() * per_feature(self._periods(mask.shape[-1]), mask.double()).log()).sum(-1)

    def log_volume(self, size: int) -> float:
        return sum(math.log(period) for period in self._periods(size))

    def _periods(self, size: int) -> list[float]:
        if len(self._all) not in (1, size):
            raise UserError(f"{self!r} has {len(self._all)} periods, the event {size} features")
        return self._all if len(self._all) == size else self._all * size
