"""One operator after another."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Linear, Operator

__all__ = ["Composition", "NonlinearComposition", "compose"]


class Composition(Linear):
    """y = A(B(...(x))) for linear A, B, ...: the last one acts first, as in `A @ B`.

    In closed form where all but the first are isometries (masks, block means, Fourier masks of complex images, `ToComplex`)
    and the first has one; by conjugate gradients else.

    Arguments:
        operators: linear operators, outermost first.

    Raises `UserError` if one is not linear (see `NonlinearComposition`) or if shapes do not follow each other.

    >>> import torch
    >>> from sciflow.posterior.operators import Dense, Mask
    >>> Composition(Dense([[1.0, 1.0]]), Mask([True, False, True]))(torch.tensor([[1.0, 2.0, 3.0]]))
    tensor([[4.]])
    """

    operators: Any

    def __init__(self, *operators: Linear) -> None:
        super().__init__()
        for operator in operators:
            if isinstance(operator, Operator) and not isinstance(operator, Linear):
                raise UserError(f"Composition: {type(operator).__name__} is not linear, use NonlinearComposition or A @ B")
        _chain(self, operators)
        inner = [operator.isometry for operator in operators[1:]]
        self._inner: Any = None if None in inner else math.prod(inner)  # type: ignore[arg-type]
        first = operators[0]
        self.closed_gram = self._inner is not None and (first.closed_gram or first.isometry is not None)
        self.isometry = None if self._inner is None or first.isometry is None else first.isometry * self._inner

    def forward(self, x: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            x = operator(x)
        return x

    def adjoint(self, y: Tensor) -> Tensor:
        for operator in self.operators:
            y = operator.adjoint(y)
        return y

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        if self._inner is None:
            return super().gram_solve(r, shift)
        first: Any = self.operators[0]
        return first.gram_solve(r, shift / self._inner) / self._inner

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        if self._inner is None:
            return super().pseudo_inverse(y)
        first, *rest = self.operators
        x = first.pseudo_inverse(y)
        for operator in rest:
            x = operator.adjoint(x)
        return x / self._inner

    def singular_values(self) -> Tensor | None:
        first: Any = self.operators[0]
        values = None if self._inner is None else first.singular_values()
        if values is None:
            return None
        device = next((b.device for b in self.buffers()), None)
        inside = torch.zeros(1, *self.domain, dtype=torch.complex128 if self.complex_domain else torch.float64, device=device)
        for operator in reversed(self.operators[1:]):
            inside = operator(inside)
        # over the reals a complex number is two, in what the first operator takes and in what it gives
        pairs = [value.is_complex() and not self.complex_domain for value in (inside, first(inside))]
        values = (values * self._inner**0.5).repeat_interleave(2 if pairs[0] else 1)
        count = min(math.prod(self.domain), math.prod(self.range) * (2 if pairs[1] else 1))
        return nn.functional.pad(values, (0, max(0, count - len(values))))


class NonlinearComposition(Operator):
    """y = A(B(...(x))) for any operators, the last one acts first.

    >>> import torch
    >>> from sciflow.posterior.operators import Dense, Function
    >>> NonlinearComposition(Function(torch.square, 1), Dense([[1.0, 1.0]]))(torch.tensor([[1.0, 2.0]]))
    tensor([[9.]])
    """

    operators: Any

    def __init__(self, *operators: Operator) -> None:
        super().__init__()
        _chain(self, operators)

    def forward(self, x: Tensor) -> Tensor:
        for operator in reversed(self.operators):
            x = operator(x)
        return x


def compose(*operators: Operator) -> Operator:
    """The operators one after another, the last one first: a `Composition` if all are linear. `A @ B` is `compose(A, B)`."""
    parts: list[Operator] = []
    for operator in operators:
        if isinstance(operator, (Composition, NonlinearComposition)):
            parts.extend(operator.operators)
        else:
            parts.append(operator)
    linear = [part for part in parts if isinstance(part, Linear)]
    return Composition(*linear) if len(linear) == len(parts) else NonlinearComposition(*parts)


def _chain(owner: Any, operators: tuple[Operator, ...]) -> None:
    name = type(owner).__name__
    if not operators or not all(isinstance(operator, Operator) for operator in operators):
        raise UserError(f"{name}: give operators, got {', '.join(type(o).__name__ for o in operators) or 'none'}")
    for outer, inner in pairwise(operators):
        if outer.domain != inner.range:
            raise UserError(
                f"{name}: {type(outer).__name__} acts on {tuple(outer.domain)}, "
                f"{type(inner).__name__} before it gives {tuple(inner.range)}"
            )
    owner.operators = nn.ModuleList(operators)
    owner.domain, owner.range = operators[-1].domain, operators[0].range
    kinds = [operator.complex_domain for operator in reversed(operators) if operator.complex_domain is not None]
    owner.complex_domain = kinds[0] if kinds else None
