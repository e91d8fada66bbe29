"""Nothing happens to x."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from sciflow.posterior.operators.base import Linear, shape_of

__all__ = ["Identity"]


class Identity(Linear):
    """y = x, real or complex.

    Arguments:
        domain: the shape of one row.

    >>> import torch
    >>> Identity(2).gram_solve(torch.tensor([[2.0, 4.0]]), 1.0)
    tensor([[1., 2.]])
    """

    isometry = 1.0

    def __init__(self, domain: int | Sequence[int]) -> None:
        super().__init__()
        self.domain = self.range = shape_of(self, domain)

    def forward(self, x: Tensor) -> Tensor:
        return self.check_input(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.check_output(y)
