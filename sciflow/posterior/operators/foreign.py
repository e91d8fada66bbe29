"""Operators of other libraries: whatever has deepinv's methods A, A_adjoint and A_dagger."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.operators.base import Linear, Operator, shape_of
from sciflow.posterior.operators.function import found_range

__all__ = ["ForeignLinear", "ForeignOperator", "foreign"]


class ForeignOperator(Operator):
    """y = physics.A(x), nonlinear and differentiable. Noise that the object may add elsewhere is not used.

    Arguments:
        physics: an object with a method A(x) of rows.
        domain, range: shapes of one row; the range is found by a call with zeros if not given.
    """

    unrecordable = "an operator of another library cannot be saved: build it again and save what is yours"

    def __init__(self, physics: Any, domain: int | Sequence[int], range: int | Sequence[int] | None = None) -> None:
        super().__init__()
        if not callable(getattr(physics, "A", None)):
            raise UserError(f"{type(physics).__name__} has no method A(x): expected A, and A_adjoint if it is linear")
        self.physics = physics
        self.domain = shape_of(self, domain)
        self.range = shape_of(self, range, "range") if range is not None else found_range(self, physics.A)

    def forward(self, x: Tensor) -> Tensor:
        return self.check_output(self.physics.A(self.check_input(x)))

    def extra_repr(self) -> str:
        return f"{type(self.physics).__name__}, {tuple(self.domain)} -> {tuple(self.range)}"


class ForeignLinear(ForeignOperator, Linear):
    """y = physics.A(x) with the adjoint physics.A_adjoint(y).

    Arguments:
        physics: an object with methods A and A_adjoint.
        domain, range: shapes of one row; the range is found by a call with zeros if not given.
        use_dagger: take physics.A_dagger as the pseudo-inverse. Many libraries stop their iteration early; by default it is
            conjugate gradients here, see `least_squares`.

    `Problem` runs the dot test on it once, see `check_adjoint`.
    """

    def __init__(
        self, physics: Any, domain: int | Sequence[int], range: int | Sequence[int] | None = None, *, use_dagger: bool = False
    ) -> None:
        super().__init__(physics, domain, range)
        for name in ("A_adjoint", "A_dagger") if use_dagger else ("A_adjoint",):
            if not callable(getattr(physics, name, None)):
                raise UserError(f"{type(physics).__name__} has no method {name}(y)")
        self.use_dagger = use_dagger

    @property
    def any_precision(self) -> bool:
        return False

    def adjoint(self, y: Tensor) -> Tensor:
        return self.check_input(self.physics.A_adjoint(self.check_output(y)))

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        if not self.use_dagger:
            return super().pseudo_inverse(y)
        return self.check_input(self.physics.A_dagger(self.check_output(y)))

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y)


def foreign(
    physics: Any, domain: int | Sequence[int], range: int | Sequence[int] | None = None, *, use_dagger: bool = False
) -> ForeignOperator:
    """A `ForeignLinear` if the object has a method A_adjoint, else a `ForeignOperator`.

    >>> import torch
    >>> class Doubler:
    ...     def A(self, x): return 2 * x
    ...     def A_adjoint(self, y): return 2 * y
    >>> foreign(Doubler(), 1).pseudo_inverse(torch.tensor([[4.0]]))
    tensor([[2.]])
    """
    if callable(getattr(physics, "A_adjoint", None)):
        return ForeignLinear(physics, domain, range, use_dagger=use_dagger)
    if use_dagger:
        raise UserError(f"{type(physics).__name__} has no A_adjoint, so it is taken as nonlinear and has no pseudo-inverse")
    return ForeignOperator(physics, domain, range)
