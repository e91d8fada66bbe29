"""Some entries of x are seen, the others are not: inpainting."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant
from sciflow.posterior.operators.base import Linear, shape_of

__all__ = ["Mask"]


class Mask(Linear):
    """y = the entries of x where the mask is true, as a vector (m,) in row-major order. Real or complex.

    What is not seen is no datum, so it is not in y; `adjoint` puts y back and 0 elsewhere.

    Arguments:
        mask: booleans (or 0 and 1).
        domain: the shape of one row, against which the mask is broadcast (a mask (H, W) for images (C, H, W)); that of the mask
            by default.

    Raises `UserError` if the mask has other values, sees nothing, or does not fit the domain.

    >>> operator = Mask([True, False, True])
    >>> y = operator(torch.tensor([[1.0, 2.0, 3.0]]))
    >>> y, operator.adjoint(y)
    (tensor([[1., 3.]]), tensor([[1., 0., 3.]]))
    """

    isometry = 1.0
    mask: Tensor
    _places: Tensor

    def __init__(self, mask: Any, domain: int | Sequence[int] | None = None) -> None:
        super().__init__()
        values = constant(self, "mask", mask)
        if not bool(((values == 0) | (values == 1)).all()):
            raise UserError("Mask: the mask has values beside 0 and 1: give booleans, True where x is seen")
        self.domain = torch.Size(values.shape) if domain is None else shape_of(self, domain)
        self.register_buffer("mask", fitted(self, "mask", values.bool(), self.domain))
        if not bool(self.mask.any()):
            raise UserError("Mask: no entry is true, so that nothing is seen: True stands for an entry that is measured")
        self.register_buffer("_places", self.mask.reshape(-1).nonzero()[:, 0], persistent=False)
        self.range = torch.Size([len(self._places)])

    def forward(self, x: Tensor) -> Tensor:
        return self.check_input(x).reshape(len(x), -1).index_select(1, self._places)

    def adjoint(self, y: Tensor) -> Tensor:
        full = torch.zeros(len(self.check_output(y)), math.prod(self.domain), dtype=y.dtype, device=y.device)
        return full.index_copy(1, self._places, y).reshape(len(y), *self.domain)

    def range_projection(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, self.check_input(x), 0)


def fitted(owner: Any, name: str, value: Tensor, domain: torch.Size) -> Tensor:
    """A constant expanded to the domain, contiguous. Raises `UserError` with both shapes if it does not fit."""
    try:
        return value.expand(domain).contiguous()
    except RuntimeError:
        raise UserError(
            f"{type(owner).__name__}: {name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(domain)}"
        ) from None
