"""One constraint on a training: a quantity, its bounds, its unit."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training.objective import Batch

__all__ = ["Constraint", "weighted_mean"]


def weighted_mean(values: Tensor, batch: Batch) -> Tensor:
    """sum_i w_i v_i / sum_i w_i over the rows of a batch: the usual shape of a constrained quantity.

    >>> import torch
    >>> weighted_mean(torch.tensor([1.0, 4.0]), Batch(torch.zeros(2, 1), weight=torch.tensor([2.0, 1.0])))
    tensor(2.)
    """
    return values.mean() if batch.weight is None else (batch.weight * values).sum() / batch.weight.sum()


@dataclass(frozen=True)
class Constraint:
    """One condition C(flow, batch) on the result; made by `equality`, `maximum`, `minimum` or `between`.

    Arguments:
        function: (flow, batch) -> C of shape (), differentiable, in the units of the bounds.
        lower, upper: bounds; equal ones make an equality.
        name, unit: for reports.
        scale: what counts as a violation of size one, in the same unit: the tolerance. By default the size of the
            bound (for `between` half its width). It sets how hard the training reacts, not where it ends.

    >>> Constraint.maximum(lambda flow, batch: batch.x.std(), 0.5, name="resolution", unit="GeV")
    resolution <= 0.5 GeV
    """

    function: Callable[[nn.Module, Batch], Tensor]
    lower: float
    upper: float
    name: str
    unit: str
    scale: float

    @classmethod
    def equality(
        cls, function: Any, value: float, *, name: str = "C", unit: str = "", scale: float | None = None
    ) -> Constraint:
        """C = value."""
        return cls._checked(function, value, value, name, unit, scale)

    @classmethod
    def maximum(cls, function: Any, value: float, *, name: str = "C", unit: str = "", scale: float | None = None) -> Constraint:
        """C <= value."""
        return cls._checked(function, -math.inf, value, name, unit, scale)

    @classmethod
    def minimum(cls, function: Any, value: float, *, name: str = "C", unit: str = "", scale: float | None = None) -> Constraint:
        """C >= value."""
        return cls._checked(function, value, math.inf, name, unit, scale)

    @classmethod
    def between(
        cls, function: Any, lower: float, upper: float, *, name: str = "C", unit: str = "", scale: float | None = None
    ) -> Constraint:
        """lower <= C <= upper."""
        if not lower < upper:
            raise UserError(f"constraint {name!r}: the lower bound {lower} is not below the upper one {upper}")
        return cls._checked(function, lower, upper, name, unit, scale)

    @classmethod
    def _checked(cls, function: Any, lower: float, upper: float, name: str, unit: str, scale: float | None) -> Constraint:
        finite = [abs(bound) for bound in (lower, upper) if math.isfinite(bound)]
        if math.isnan(lower) or math.isnan(upper) or not finite:
            raise UserError(f"constraint {name!r}: the bound is {upper if math.isinf(lower) else lower}, give a finite number")
        if scale is None:
            scale = (upper - lower) / 2 if len(finite) == 2 and lower < upper else max(finite) or 1.0
        if not (scale > 0 and math.isfinite(scale)):
            raise UserError(f"constraint {name!r}: scale={scale}, give a positive tolerance in its unit ({unit or 'none'})")
        return cls(function, lower, upper, name, unit, float(scale))

    def sides(self) -> list[tuple[float, float]]:
        """(sign, bound) of each inequality sign * (C - bound) <= 0; one for an equality."""
        if self.lower == self.upper:
            return [(1.0, self.upper)]
        return [(s, b) for s, b in ((1.0, self.upper), (-1.0, self.lower)) if math.isfinite(b)]

    def violation(self, value: float) -> float:
        """By how much the value lies outside, in the unit of the bounds."""
        return max(value - self.upper, self.lower - value, 0.0)

    def __repr__(self) -> str:
        unit = f" {self.unit}" if self.unit else ""
        if self.lower == self.upper:
            return f"{self.name} = {self.upper:g}{unit}"
        low, high = (f"{self.lower:g} <= " if math.isfinite(self.lower) else ""), f" <= {self.upper:g}"
        if math.isinf(self.upper):
            return f"{self.name} >= {self.lower:g}{unit}"
        return f"{low}{self.name}{high}{unit}"
