"""A differentiable function as an operator."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Operator, shape_of

__all__ = ["Function"]


class Function(Operator):
    """y = f(x) for rows x (B, *domain): nonlinear forward models. `vjp` is by automatic differentiation.

    Arguments:
        function: a callable of torch operations on rows, each row for itself; a `torch.nn.Module` keeps its weights.
            One that is also `Recorded` can be saved.
        domain: the shape of one row.
        range: the shape of a result; found by a call with one row of zeros if not given.

    Raises `UserError` if it is not callable or cannot be called with zeros and no range is given.

    >>> operator = Function(lambda x: x.square().sum(1, keepdim=True), 2)
    >>> operator.range, operator.vjp(torch.tensor([[1.0, 2.0]]), torch.ones(1, 1))
    (torch.Size([1]), tensor([[2., 4.]]))
    """

    def __init__(
        self, function: Callable[[Tensor], Tensor], domain: int | Sequence[int], range: int | Sequence[int] | None = None
    ) -> None:
        super().__init__()
        if not callable(function):
            raise UserError(f"Function: {type(function).__name__} is not callable: give a function of rows (B, *domain)")
        self.function = function
        self.domain = shape_of(self, domain)
        self.range = shape_of(self, range, "range") if range is not None else found_range(self, function)

    def forward(self, x: Tensor) -> Tensor:
        y = self.function(self.check_input(x))
        if len(y) != len(x):
            expected = (len(x), *self.range)
            raise ValueError(f"Function: {len(x)} rows of x gave {tuple(y.shape)}, expected {expected}")
        return self.check_output(y)

    def extra_repr(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return f"{name}, {tuple(self.domain)} -> {tuple(self.range)}"


def found_range(owner: Operator, function: Callable[[Tensor], Tensor]) -> torch.Size:
    """The shape of f(0) without its rows. Raises `UserError` if it cannot be told."""
    name = type(owner).__name__
    module = getattr(function, "__self__", function)
    weights = list(module.parameters()) + list(module.buffers()) if isinstance(module, nn.Module) else []
    like = next((entry for entry in weights if entry.is_floating_point()), torch.empty(0))
    zeros = torch.zeros(1, *owner.domain, dtype=like.dtype, device=like.device)
    try:
        with torch.no_grad():
            y = function(zeros)
    except Exception as error:  # whatever the function raises, the remedy is the same
        raise UserError(
            f"{name}: the range is not given and one row of zeros {tuple(zeros.shape)} raised {type(error).__name__}: {error}: "
            "give range="
        ) from error
    if not isinstance(y, Tensor) or y.dim() < 1 or len(y) != 1:
        what = tuple(y.shape) if isinstance(y, Tensor) else type(y).__name__
        raise UserError(f"{name}: one row of zeros {tuple(zeros.shape)} gave {what}, expected a tensor of one row")
    return y.shape[1:]
