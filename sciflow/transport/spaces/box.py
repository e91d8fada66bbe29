"""A box with reflecting walls."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.base import Space
from sciflow.transport.spaces.constants import per_feature

__all__ = ["Box"]

_LAYER = 0.3


class Box(Space):
    r"""low <= x <= high in every feature. Geodesics are straight; what steps over a wall is folded back, as often as needed.

    Beyond a wall the field is its mirror image: V(x) = S f(fold(x)) with S = -1 for features that are mirrored an odd
    number of times. Densities are zero outside. They integrate to one inside if nothing flows through a wall: networks see
    cos(pi u), u = (x - low) / (high - low), and their velocity is multiplied by s / sqrt(s^2 + 0.09), s = sin(pi u), which is
    so by construction and makes the mirrored field smooth. A network that is not wrapped so (`OnSpace`) stays inside all the
    same, but what it learned flows through the walls a little: its densities do not integrate to one.

    Arguments:
        low, high: edges for all features, or one for each along the last axis of the event.

    Source: Reflected Flow Matching, Xie et al. 2024, arXiv 2405.16577.

    >>> Box(0.0, 1.0).step(torch.tensor([[0.9]]), torch.tensor([[0.3]]))
    tensor([[0.8000]])
    """

    straight = True
    walls = True
    mirrors = True

    def __init__(self, low: float | Sequence[float] = 0.0, high: float | Sequence[float] = 1.0) -> None:
        lows = [low] if isinstance(low, (int, float)) else list(low)
        highs = [high] if isinstance(high, (int, float)) else list(high)
        size = max(len(lows), len(highs))
        lows, highs = lows * (size // max(len(lows), 1)), highs * (size // max(len(highs), 1))
        if len(lows) != len(highs) or not all(-math.inf < a < b < math.inf for a, b in zip(lows, highs, strict=True)):
            raise UserError(f"a box needs finite lower edges below its upper edges, got low={low!r} and high={high!r}")
        self.low: float | list[float] = lows[0] if size == 1 else lows
        self.high: float | list[float] = highs[0] if size == 1 else highs
        self._lows, self._highs = lows, highs
        self.keeps_zero = all(a <= 0 <= b for a, b in zip(lows, highs, strict=True))

    def project(self, x: Tensor) -> Tensor:
        return self.fold(x)[0]

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        low, high = per_feature(self.low, x), per_feature(self.high, x)
        width = high - low
        walls = torch.floor((x - low) / width)  # how many lie between x and the box
        odd = walls - 2 * torch.floor(walls / 2)
        sign = 1 - 2 * odd
        folded = low + width * odd + sign * (x - low - walls * width)
        # points inside keep their bits and, on the wall, their direction
        within = (x >= low) & (x <= high)
        return torch.where(within, x, folded.clamp(low, high)), torch.where(within, 1.0, sign)

    def inside(self, x: Tensor) -> Tensor:
        return ((x >= per_feature(self.low, x)) & (x <= per_feature(self.high, x))).all(-1)

    def width(self, size: int) -> int:
        self._widths(size)
        return size

    def embed(self, x: Tensor) -> Tensor:
        return torch.cos(self._angle(x)[0])

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        angle, scale = self._angle(x)
        sine = torch.sin(angle)
        # nearly 1 but in a layer at the walls, and smooth: on the way to data at a wall velocities change fast there
        return scale * sine * torch.rsqrt(sine * sine + _LAYER**2) * u

    def uniforms(self, size: int) -> int:
        return size

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        low, high = per_feature(self.low, uniform), per_feature(self.high, uniform)
        return low + (high - low) * uniform

    def present_log_volume(self, mask: Tensor) -> Tensor:
        return (mask.double() * per_feature(self._widths(mask.shape[-1]), mask.double()).log()).sum(-1)

    def log_volume(self, size: int) -> float:
        return sum(math.log(width) for width in self._widths(size))

    def _angle(self, x: Tensor) -> tuple[Tensor, Tensor]:
        low, high = per_feature(self.low, x), per_feature(self.high, x)
        return math.pi * (x - low) / (high - low), (high - low) / 2

    def _widths(self, size: int) -> list[float]:
        widths = [b - a for a, b in zip(self._lows, self._highs, strict=True)]
        if len(widths) not in (1, size):
            raise UserError(f"{self!r} has {len(widths)} features, the event {size}")
        return widths if len(widths) == size else widths * size
