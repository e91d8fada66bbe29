"""Several measurements of one x."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Linear, Operator

__all__ = ["NonlinearStack", "Stack", "stack"]


class Stack(Linear):
    """y = (A_1 x, A_2 x, ...) as one vector: results are flattened and joined. `split` and `join` go between both forms.

    Results are all real or all complex (`ToPairs` makes complex ones real). Solutions by conjugate gradients.

    Arguments:
        operators: linear operators on the same domain.

    Raises `UserError` if domains differ or one is not linear (see `NonlinearStack`).

    >>> from sciflow.posterior.operators import Identity, Mask
    >>> operator = Stack(Identity(2), Mask([True, False]))
    >>> operator(torch.tensor([[1.0, 2.0]])), operator.pseudo_inverse(torch.tensor([[1.0, 2.0, 3.0]])).round(decimals=3)
    (tensor([[1., 2., 1.]]), tensor([[2., 2.]]))
    """

    operators: Any

    def __init__(self, *operators: Linear) -> None:
        super().__init__()
        for operator in operators:
            if isinstance(operator, Operator) and not isinstance(operator, Linear):
                raise UserError(f"Stack: {type(operator).__name__} is not linear, use NonlinearStack")
        _side_by_side(self, operators)

    def forward(self, x: Tensor) -> Tensor:
        return self.join([operator(x) for operator in self.operators])

    def adjoint(self, y: Tensor) -> Tensor:
        parts = self.split(self.check_output(y))
        found = [operator.adjoint(part) for operator, part in zip(self.operators, parts, strict=True)]
        return torch.stack(found).sum(0)

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector per row, of results (B, *range) of each operator. Raises `ValueError` if shapes or kinds do not fit."""
        return _joined(self, parts)

    def split(self, y: Tensor) -> list[Tensor]:
        """The results (B, *range) of each operator, of joined ones."""
        return _parts(self, y)


class NonlinearStack(Operator):
    """y = (A_1(x), A_2(x), ...) as one vector, for any operators on the same domain. See `Stack`."""

    operators: Any

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        _side_by_side(self, operators)

    def forward(self, x: Tensor) -> Tensor:
        return self.join([operator(x) for operator in self.operators])

    def join(self, parts: Sequence[Tensor]) -> Tensor:
        """One vector per row, of results (B, *range) of each operator."""
        return _joined(self, parts)

    def split(self, y: Tensor) -> list[Tensor]:
        """The results (B, *range) of each operator, of joined ones."""
        return _parts(self, y)


def stack(*operators: Operator) -> Stack | NonlinearStack:
    """The operators side by side: a `Stack` if all are linear."""
    linear = [operator for operator in operators if isinstance(operator, Linear)]
    return Stack(*linear) if len(linear) == len(operators) else NonlinearStack(*operators)


def _side_by_side(owner: Any, operators: tuple[Operator, ...]) -> None:
    name = type(owner).__name__
    if not operators or not all(isinstance(operator, Operator) for operator in operators):
        raise UserError(f"{name}: give operators, got {', '.join(type(o).__name__ for o in operators) or 'none'}")
    if len(domains := {tuple(operator.domain) for operator in operators}) > 1:
        raise UserError(f"{name}: the operators act on different domains: {', '.join(map(str, sorted(domains)))}")
    kinds = {operator.complex_domain for operator in operators} - {None}
    if len(kinds) > 1:
        raise UserError(f"{name}: some operators want complex x, others real x: put ToComplex before the former")
    owner.operators = nn.ModuleList(operators)
    owner.domain, owner.complex_domain = operators[0].domain, next(iter(kinds), None)
    owner._sizes = [math.prod(operator.range) for operator in operators]
    owner.range = torch.Size([sum(owner._sizes)])


def _joined(owner: Any, parts: Sequence[Tensor]) -> Tensor:
    if len(parts) != len(owner.operators):
        raise ValueError(f"{type(owner).__name__}: {len(parts)} results for {len(owner.operators)} operators")
    for operator, part in zip(owner.operators, parts, strict=True):
        operator.check_output(part)
    if len({part.is_complex() for part in parts}) > 1:
        kinds = ", ".join(
            f"{type(o).__name__} {'complex' if p.is_complex() else 'real'}" for o, p in zip(owner.operators, parts, strict=True)
        )
        raise ValueError(f"{type(owner).__name__}: real and complex results side by side ({kinds}): put ToPairs on the latter")
    return torch.cat([part.reshape(len(part), -1) for part in parts], 1)


def _parts(owner: Any, y: Tensor) -> list[Tensor]:
    pieces = owner.check_output(y).split(owner._sizes, 1)
    return [piece.reshape(len(y), *operator.range) for operator, piece in zip(owner.operators, pieces, strict=True)]
