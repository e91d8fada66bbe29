"""Each entry of x times a number: masks of transmission, gains, coil sensitivities; and an operator times a number."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.operators.base import Linear, shape_of

__all__ = ["Diagonal", "Scaled"]


class Diagonal(Linear):
    r"""y = w x with broadcasting: a diagonal, or with leading dimensions more a stack of diagonals in closed form,

        A'A = sum_c |w_c|^2,   (A A' + s)^-1 = (1 - A (A'A + s)^-1 A') / s.

    Complex weights want complex x.

    Arguments:
        weight: (*domain), or (c, *domain) for c diagonals of one x, such as the sensitivities of c coils.
        domain: the shape of one row; that of the weight by default.

    Raises `UserError` if values are not finite or shapes do not broadcast.

    >>> operator = Diagonal([[1.0, 2.0], [1.0, 0.0]], domain=2)
    >>> operator.pseudo_inverse(operator(torch.tensor([[3.0, 4.0]])))
    tensor([[3., 4.]])
    """

    weight: Tensor
    _power: Tensor

    def __init__(self, weight: Any, domain: int | Sequence[int] | None = None) -> None:
        super().__init__()
        value = constant(self, "weight", weight)
        value = value if value.is_floating_point() or value.is_complex() else value.to(torch.get_default_dtype())
        if not bool(value.isfinite().all()):
            raise UserError(f"Diagonal: {int((~value.isfinite()).sum())} weights are not finite")
        self.domain = torch.Size(value.shape) if domain is None else shape_of(self, domain)
        try:
            self.range = torch.broadcast_shapes(self.domain, value.shape)
        except RuntimeError:
            self.range = torch.Size()
        if self.range[len(self.range) - len(self.domain) :] != self.domain:
            raise UserError(
                f"Diagonal: the weight has shape {tuple(value.shape)}, expected one that broadcasts against the domain "
                f"{tuple(self.domain)}, with further dimensions in front if there are several"
            )
        self.complex_domain = True if value.is_complex() else None
        self.register_buffer("weight", value)
        power = value.abs().square().expand(self.range)
        self.register_buffer("_power", power.reshape(-1, *self.domain).sum(0), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check_input(x)
        return x.reshape(len(x), *[1] * (len(self.range) - len(self.domain)), *self.domain) * matched(self.weight, x)

    def adjoint(self, y: Tensor) -> Tensor:
        product = self.check_output(y) * matched(self.weight, y).conj()
        return product.reshape(len(y), -1, *self.domain).sum(1)

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        shift = self.rows(shift, self.check_output(r))
        if self.range == self.domain:
            return _quotient(r, matched(self._power, r) + shift)
        inner = shift.reshape(-1, *[1] * len(self.domain))
        power = matched(self._power, r)
        back = self.adjoint(r)
        seen = self(_quotient(back, power))  # the part of r in the range of A
        return self(_quotient(_quotient(back, power), power + inner)) + _quotient(r - seen, shift.expand_as(r.real))

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return _quotient(self.check_input(r), matched(self._power, r) + self.rows(shift, r))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return _quotient(self.adjoint(y), matched(self._power, y))

    def singular_values(self) -> Tensor | None:
        return self._power.sqrt().flatten().sort(descending=True).values


class Scaled(Linear):
    """y = factor A x.

    Arguments:
        operator: a linear operator.
        factor: a real number, not 0.

    >>> from sciflow.posterior.operators import Identity
    >>> Scaled(Identity(1), 2.0).pseudo_inverse(torch.tensor([[4.0]]))
    tensor([[2.]])
    """

    def __init__(self, operator: Linear, factor: float) -> None:
        super().__init__()
        if not isinstance(operator, Linear):
            raise UserError(f"Scaled: the operator is a {type(operator).__name__}, expected a linear one")
        if not (math.isfinite(factor) and factor):
            raise UserError(f"Scaled: the factor is {factor}, expected a finite number that is not 0")
        self.operator, self.factor = operator, float(factor)
        self.domain, self.range, self.complex_domain = operator.domain, operator.range, operator.complex_domain
        self.isometry = None if operator.isometry is None else operator.isometry * self.factor**2

    def forward(self, x: Tensor) -> Tensor:
        return self.factor * self.operator(x)

    def adjoint(self, y: Tensor) -> Tensor:
        return self.factor * self.operator.adjoint(y)

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return self.operator.gram_solve(r, shift / self.factor**2) / self.factor**2

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return self.operator.normal_solve(r, shift / self.factor**2) / self.factor**2

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        return self.operator.pseudo_inverse(y) / self.factor

    def singular_values(self) -> Tensor | None:
        values = self.operator.singular_values()
        return None if values is None else abs(self.factor) * values

    def extra_repr(self) -> str:
        return f"factor={self.factor:g}"


def _quotient(a: Tensor, b: Tensor) -> Tensor:
    """a / b, and 0 where b is 0: for spectra that have no rounding errors."""
    return torch.where(b > 0, a / torch.where(b > 0, b, 1), 0)
