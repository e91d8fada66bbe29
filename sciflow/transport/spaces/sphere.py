"""The unit sphere."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform
from sciflow.transport.spaces.base import Space
from sciflow.transport.spaces.even import arsinc, cosine, sinc

__all__ = ["Sphere"]


class Sphere(Space):
    r"""S^d in R^{d+1}: unit vectors along the last axis of the event, with the metric of R^{d+1}.

        exp_x(v) = cos|v| x + sin|v| v/|v|,      log_x(y) = theta/sin(theta) (y - <x, y> x),  cos(theta) = <x, y>.

    To the antipode, the cut locus, a great circle through the coordinate axis farthest from x is chosen: log has the right
    length pi there and exp leads back. The circle is S^1: an event of 2 coordinates.

    Source: Flow Matching on General Geometries, Chen and Lipman 2023, arXiv 2302.03660.

    >>> north, east = torch.tensor([[0.0, 0.0, 1.0]]), torch.tensor([[1.0, 0.0, 0.0]])
    >>> Sphere().distance(north, torch.cat([north, east, -north])).tolist()
    [0.0, 1.5707963705062866, 3.1415927410125732]
    """

    whole = True

    def project(self, x: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        present = square > 0
        return torch.where(present, x / torch.where(present, square, 1).sqrt(), x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        square = x.square().sum(-1, keepdim=True)
        return v - (x * v).sum(-1, keepdim=True) / torch.where(square > 0, square, 1) * x

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        square = v.square().sum(-1, keepdim=True)
        return cosine(square) * x + sinc(square) * v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        across = self.tangent(x, y - x)
        square, along = across.square().sum(-1, keepdim=True), (x * y).sum(-1, keepdim=True)
        near = (square < 0.005) & (along >= 0)
        # below this the direction to the antipode is rounding error
        opposite = (along < 0) & (square < (16 * torch.finfo(x.dtype).eps) ** 2)
        root = torch.where(near | opposite, 1.0, square).sqrt()
        scale = torch.where(near, arsinc(torch.where(near, square, 0)), torch.atan2(root, along) / root)
        return torch.where(opposite, math.pi * self._aside(x), scale * across)

    def shoot(self, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        square = v.square().sum(-1, keepdim=True)
        cos, sin = cosine(t * t * square), sinc(t * t * square)
        return cos * x + t * sin * v, cos * v - t * square * sin * x

    def inside(self, x: Tensor) -> Tensor:
        return (x.square().sum(-1) - 1).abs() < 2e-4

    def width(self, size: int) -> int:
        if size < 2:
            raise UserError(f"a point of {self!r} has at least 2 coordinates, the event has {size}")
        return size

    def uniforms(self, size: int) -> int:
        self.width(size)
        return size

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        return self.project(normal_from_uniform(uniform))

    def log_volume(self, size: int) -> float:
        return math.log(2) + 0.5 * size * math.log(math.pi) - math.lgamma(0.5 * size)

    @staticmethod
    def _aside(x: Tensor) -> Tensor:
        """A unit tangent at x."""
        axis = torch.nn.functional.one_hot(x.abs().argmin(-1), x.shape[-1]).to(x.dtype)
        aside = axis - (x * axis).sum(-1, keepdim=True) * x
        return aside / aside.square().sum(-1, keepdim=True).clamp_min(0.1).sqrt()
