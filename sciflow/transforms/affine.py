"""Shift and scale."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.transforms.base import Transform

__all__ = ["Affine"]


class Affine(Transform):
    r"""y = shift + scale x elementwise, ladj = log |scale|.

    Arguments:
        shift, scale: tensors that broadcast to the shape of x; no scale may be 0.

    >>> transform = Affine(torch.tensor([1.0, 2.0]), torch.tensor([2.0, -1.0]))
    >>> transform
    Affine((2,))
    >>> transform(torch.tensor([1.0, 1.0]))
    tensor([3., 1.])
    """

    def __init__(self, shift: Tensor, scale: Tensor) -> None:
        self.shift, self.scale = shift, scale

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.shift.to(x.dtype), self.scale.to(x.dtype)
        return shift + scale * x, torch.log(scale.abs()).expand(x.shape)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        shift, scale = self.shift.to(y.dtype), self.scale.to(y.dtype)
        return (y - shift) / scale, -torch.log(scale.abs()).expand(y.shape)

    def __repr__(self) -> str:
        return f"Affine({tuple(torch.broadcast_shapes(self.shift.shape, self.scale.shape))})"
