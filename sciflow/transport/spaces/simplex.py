"""The probability simplex."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.base import Space

__all__ = ["Simplex"]


class Simplex(Space):
    r"""x_i >= 0 with sum 1 along the last axis of the event; geodesics are straight, the volume is that of the plane.

    The simplex of K numbers has K - 1 dimensions and volume sqrt(K) / (K - 1)!. Steps that leave it end at the nearest
    point. What networks say is turned into v_i = w_i (u_i - sum_j w_j u_j / sum_j w_j), w_i = x_i / (x_i + 0.5/K): tangent,
    and zero across a face, so that no mass is lost.

    Source of the projection: Efficient Projections onto the l1-Ball for Learning in High Dimensions, Duchi et al. 2008.

    >>> Simplex().project(torch.tensor([[0.5, 0.5, 0.5], [2.0, 0.0, 0.0]]))
    tensor([[0.3333, 0.3333, 0.3333],
            [1.0000, 0.0000, 0.0000]])
    """

    straight = True
    walls = True
    keeps_zero = False

    def project(self, x: Tensor) -> Tensor:
        ordered = x.sort(-1, descending=True).values
        count = torch.arange(1, x.shape[-1] + 1, device=x.device, dtype=x.dtype)
        excess = (ordered.cumsum(-1) - 1) / count
        last = (ordered > excess).sum(-1, keepdim=True).clamp_min(1) - 1
        return (x - excess.gather(-1, last)).clamp_min(0)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return v - v.mean(-1, keepdim=True)

    def inside(self, x: Tensor) -> Tensor:
        return (x >= 0).all(-1) & ((x.sum(-1) - 1).abs() < 1e-4)

    def width(self, size: int) -> int:
        if size < 2:
            raise UserError(f"a point of {self!r} has at least 2 numbers, the last axis of the event has {size}")
        return size

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        gate = x / (x + 0.5 / x.shape[-1])
        return gate * (u - (gate * u).sum(-1, keepdim=True) / gate.sum(-1, keepdim=True).clamp_min(1e-6))

    def uniforms(self, size: int) -> int:
        self.width(size)
        return size

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        weight = -torch.log(uniform)
        return weight / weight.sum(-1, keepdim=True)

    def log_volume(self, size: int) -> float:
        return 0.5 * math.log(size) - math.lgamma(size)
