"""Between the real channels of a flow and complex images."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.posterior.operators.base import Linear, shape_of

__all__ = ["ToComplex", "ToPairs"]


class ToComplex(Linear):
    """x (B, 2, *shape), real -> x_0 + i x_1 (B, *shape): flows are real, so a complex unknown is a pair of channels.

    Unitary under the real inner product. `FourierMask(mask, complex_domain=True) @ ToComplex(mask.shape)` is a single-coil
    MRI.

    Arguments:
        shape: of the complex image.

    >>> ToComplex(1)(torch.tensor([[[1.0], [2.0]]]))
    tensor([[1.+2.j]])
    """

    isometry = 1.0
    complex_domain = False

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.range = shape_of(self, shape, "shape")
        self.domain = torch.Size([2, *self.range])

    def forward(self, x: Tensor) -> Tensor:
        x = self.check_input(x)
        return torch.complex(x[:, 0], x[:, 1])

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check_output(y)
        return torch.stack([y.real, y.imag if y.is_complex() else torch.zeros_like(y)], 1)

    def singular_values(self) -> Tensor | None:
        return torch.ones(self.domain.numel(), dtype=torch.float64)


class ToPairs(Linear):
    """x (B, *shape), complex -> (B, 2, *shape), real and imaginary part: the inverse of `ToComplex`.

    Puts complex results where real ones are wanted: beside real ones in a `Stack`, or under a likelihood for real data.

    Arguments:
        shape: of the complex image.

    >>> ToPairs(1)(torch.tensor([[1.0 + 2.0j]]))
    tensor([[[1.],
             [2.]]])
    """

    isometry = 1.0
    complex_domain = True

    def __init__(self, shape: int | Sequence[int]) -> None:
        super().__init__()
        self.domain = shape_of(self, shape, "shape")
        self.range = torch.Size([2, *self.domain])
        self._inverse = ToComplex(self.domain)

    def forward(self, x: Tensor) -> Tensor:
        return self._inverse.adjoint(self.check_input(x))

    def adjoint(self, y: Tensor) -> Tensor:
        return self._inverse(self.check_output(y))

    def singular_values(self) -> Tensor | None:
        return torch.ones(self.domain.numel(), dtype=torch.float64)
