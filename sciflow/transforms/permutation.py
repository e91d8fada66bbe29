"""Reordering of features."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.transforms.base import Transform

__all__ = ["Permutation"]


class Permutation(Transform):
    r"""y_i = x_order[i] on the last axis; ladj = 0.

    Raises `ValueError` if `order` does not hold each of 0, ..., D-1 once.

    >>> transform = Permutation([2, 0, 1])
    >>> transform(torch.tensor([10.0, 11.0, 12.0]))
    tensor([12., 10., 11.])
    >>> transform.inv(transform(torch.tensor([10.0, 11.0, 12.0])))
    tensor([10., 11., 12.])
    """

    event_dim = 1

    def __init__(self, order: Sequence[int]) -> None:
        self.order = [int(feature) for feature in order]
        if sorted(self.order) != list(range(len(self.order))):
            raise ValueError(f"not an order of the features 0 to {len(self.order) - 1}: {self.order}")

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return _take(x, self.order)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return _take(y, sorted(range(len(self.order)), key=self.order.__getitem__))

    def __repr__(self) -> str:
        return f"Permutation({self.order})"


def _take(x: Tensor, order: list[int]) -> tuple[Tensor, Tensor]:
    if x.shape[-1] != len(order):
        raise ValueError(f"x has shape {tuple(x.shape)}, the permutation is one of {len(order)} features")
    return x[..., torch.tensor(order, device=x.device)], x.new_zeros(x.shape[:-1])
