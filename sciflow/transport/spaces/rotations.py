"""Rotations of three-dimensional space."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.sphere import Sphere

__all__ = ["Rotations"]


class Rotations(Sphere):
    r"""SO(3) as unit quaternions (w, x, y, z) along the last axis of the event, q and -q the same rotation.

    The metric is that of the quaternions: distances are half the angle of rotation, at most pi/2, and the volume is pi^2.
    It is invariant under rotations from either side. log takes the shorter way; where both are equally long (a half turn) it
    takes that to q as written. Networks see the rotation matrix, and the gradient of their output on it is the velocity.

    Source: Flow Matching on General Geometries, Chen and Lipman 2023, arXiv 2302.03660.

    >>> q = torch.tensor([[0.5, 0.5, 0.5, 0.5]])
    >>> Rotations().distance(q, -q)
    tensor([0.])
    """

    mirrors = False  # a step normalises and leaves the sign as it is

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        # a network that is not even in q is at least evaluated at one of the two: w >= 0
        sign = torch.where(x[..., :1] < 0, -1.0, 1.0).to(x.dtype).expand_as(x)
        return self.project(x) * sign, sign

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        along = (x * y).sum(-1, keepdim=True)
        return super().log(x, torch.where(along < 0, -y, y))

    def width(self, size: int) -> int:
        if size != 4:
            raise UserError(f"a rotation is a quaternion of 4 numbers, the last axis of the event has {size}")
        return 9

    def embed(self, x: Tensor) -> Tensor:
        w, i, j, k = x.unbind(-1)
        rows = (
            w * w + i * i - j * j - k * k, 2 * (i * j - w * k), 2 * (i * k + w * j),
            2 * (i * j + w * k), w * w - i * i + j * j - k * k, 2 * (j * k - w * i),
            2 * (i * k - w * j), 2 * (j * k + w * i), w * w - i * i - j * j + k * k,
        )  # fmt: skip
        return torch.stack(rows, -1)

    def embed_mask(self, mask: Tensor) -> Tensor:
        return mask[..., :1].expand(*mask.shape[:-1], 9)

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        # half the gradient of <matrix(q), u> in q; a quadratic form, so odd in q as velocities are
        w, i, j, k = x.unbind(-1)
        a, b, c, d, e, f, g, h, l = u.unbind(-1)
        gradient = (
            w * (a + e + l) + i * (h - f) + j * (c - g) + k * (d - b),
            w * (h - f) + i * (a - e - l) + j * (b + d) + k * (c + g),
            w * (c - g) + i * (b + d) + j * (e - a - l) + k * (f + h),
            w * (d - b) + i * (c + g) + j * (f + h) + k * (l - a - e),
        )
        return self.tangent(x, torch.stack(gradient, -1))

    def log_volume(self, size: int) -> float:
        return 2 * math.log(math.pi)
