"""Hyperbolic space as a ball."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.base import Space
from sciflow.transport.spaces.even import artanhc, tanhc

__all__ = ["HyperbolicBall"]


class HyperbolicBall(Space):
    r"""Poincare's ball |x| < 1/sqrt(c) along the last axis of the event, of constant curvature -c.

    The metric is lambda(x)^2 times the Euclidean one, lambda = 2 / (1 - c |x|^2). With Moebius addition (+)

        exp_x(v) = x (+) tanh(sqrt c lambda |v| / 2) v / (sqrt c |v|),
        log_x(y) = 2 / (sqrt c lambda) artanh(sqrt c |w|) w / |w|,      w = -x (+) y.

    Velocities are those of the coordinates. Networks say them in units of the metric, so that a bounded output cannot
    reach the rim in finite time. Points closer to the rim than the dtype can resolve are moved in.

    Arguments:
        curvature: c > 0, the absolute value of the curvature.

    Source: Hyperbolic Neural Networks, Ganea et al. 2018, arXiv 1805.09112.

    >>> ball = HyperbolicBall()
    >>> ball.distance(torch.tensor([[0.0, 0.0]]), torch.tensor([[0.5, 0.0]]))  # log 3
    tensor([1.0986])
    """

    whole = True

    def __init__(self, curvature: float = 1.0) -> None:
        if not 0 < curvature < math.inf:
            raise UserError(f"curvature={curvature!r}: give the absolute value of a negative curvature, a positive number")
        self.curvature = float(curvature)

    def project(self, x: Tensor) -> Tensor:
        rim = (1 - self._margin(x)) / math.sqrt(self.curvature)
        square = x.square().sum(-1, keepdim=True)
        outside = square > rim * rim
        return torch.where(outside, x * (rim / torch.where(outside, square, 1).sqrt()), x)

    def conformal(self, x: Tensor) -> Tensor:
        """lambda(x), (..., 1)."""
        gap = 1 - self.curvature * x.square().sum(-1, keepdim=True)
        return 2 / gap.clamp_min(self._margin(x))

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self.shoot(x, v, torch.ones_like(x[..., :1]))[0]

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        w = self._add(-x, y)
        return 2 / self.conformal(x) * artanhc(self.curvature * w.square().sum(-1, keepdim=True)) * w

    def shoot(self, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        c, factor = self.curvature, self.conformal(x) / 2
        square = c * (factor * factor) * v.square().sum(-1, keepdim=True)
        tangent = tanhc(t * t * square) * t
        w = tangent * factor * v
        # the derivative of tanh is 1 - tanh^2, and tanh^2 = square tangent^2
        dw = (1 - square * tangent * tangent) * factor * v
        xw, ww, xx = ((a * b).sum(-1, keepdim=True) for a, b in ((x, w), (w, w), (x, x)))
        xdw, wdw = ((a * dw).sum(-1, keepdim=True) for a in (x, w))
        below = self._positive(1 + 2 * c * xw + c * c * xx * ww)
        point = ((1 + 2 * c * xw + c * ww) * x + (1 - c * xx) * w) / below
        above = 2 * c * (xdw + wdw) * x + (1 - c * xx) * dw
        return self.project(point), (above - 2 * c * (xdw + c * xx * wdw) * point) / below

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return (self.conformal(x) * v).flatten(1).square().sum(1)

    def correction(self, x: Tensor, v: Tensor) -> Tensor:
        # log sqrt(det g) = size log lambda, and grad log lambda = c lambda x
        return (self.curvature * x.shape[-1] * self.conformal(x) * x * v).flatten(1).sum(1)

    def inside(self, x: Tensor) -> Tensor:
        return self.curvature * x.square().sum(-1) < 1

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        return u / self.conformal(x)

    def _add(self, x: Tensor, y: Tensor) -> Tensor:
        c = self.curvature
        xy, xx, yy = ((a * b).sum(-1, keepdim=True) for a, b in ((x, y), (x, x), (y, y)))
        return ((1 + 2 * c * xy + c * yy) * x + (1 - c * xx) * y) / self._positive(1 + 2 * c * xy + c * c * xx * yy)

    @staticmethod
    def _margin(x: Tensor) -> float:
        return 4e-4 if x.dtype.itemsize <= 4 else 1e-7

    @staticmethod
    def _positive(x: Tensor) -> Tensor:
        return x.clamp_min(torch.finfo(x.dtype).tiny ** 0.5)
