"""Constraints that the draws have to meet."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.schedule import Schedule, strength_at, strength_of
from sciflow.transport.guidance.tilt import affine_path, data_of, tangent
from sciflow.transport.paths.base import root_epsilon

__all__ = ["Constraint", "LinearConstraint"]


class Constraint(Guidance):
    r"""Aims at the expected endpoint's projection P onto the set of allowed points instead of the endpoint itself:

        v' = v + strength (a' - a s' / s) (P(E[x_1 | x_t]) - E[x_1 | x_t]).

    At strength 1 draws end in the set: exactly for convex sets and steppers whose last evaluation is before t = 1. They follow
    no posterior given the constraint, and have no density.

    Source: Gradient-Free Generation for Hard-Constrained Systems, Cheng et al. 2024, arXiv 2412.01786 (the projection of the
    extrapolated end).
    """

    def __init__(self, strength: float | Schedule = 1.0) -> None:
        super().__init__()
        self.strength = strength_of(strength)

    @property
    def singular(self) -> bool:  # type: ignore[override]
        return self.strength != 0

    @property
    def no_density(self) -> str | None:  # type: ignore[override]
        return None if self.strength == 0 else "a constraint collapses the draws onto a set of lower dimension"

    @abstractmethod
    def project(self, x: Tensor) -> Tensor:
        """The nearest allowed points of data x (B, *event)."""

    def forward(self, field: Field) -> Field:
        if self.strength == 0:
            return field
        path = affine_path(self, field)

        def guided(t: Tensor, x: Tensor) -> Tensor:
            v = field(t, x)
            a, s, da, ds = path.at(t, x)
            end = data_of(field, path.endpoint_from_velocity(v, x, t))
            factor = strength_at(self.strength, t, x) * (da - ds * a / s.clamp_min(root_epsilon(s)))
            return v + tangent(field, x, factor * (self.project(end) - end))

        return FunctionField(guided, field, self.forward)


class LinearConstraint(Constraint):
    """matrix x = value for flattened events x: conservation laws, known sums, observed features.

    Arguments:
        matrix: K rows of D numbers, linearly independent.
        value: K numbers.

    Raises `UserError` for shapes that do not fit and rows that depend on each other.

    >>> LinearConstraint([[1.0, 1.0]], [1.0]).project(torch.zeros(1, 2))
    tensor([[0.5000, 0.5000]])
    """

    matrix: Tensor
    inverse: Tensor
    value: Tensor

    def __init__(self, matrix: Sequence[Sequence[float]], value: Sequence[float], strength: float | Schedule = 1.0) -> None:
        super().__init__(strength)
        rows = torch.as_tensor(matrix, dtype=torch.float64)
        if rows.dim() != 2 or rows.shape[0] != len(value):
            raise UserError(
                f"the matrix has shape {tuple(rows.shape)}, expected ({len(value)}, features) for {len(value)} values"
            )
        if int(torch.linalg.matrix_rank(rows)) < len(rows):
            raise UserError(f"the {len(rows)} constraints depend on each other: leave out those that follow from others")
        self.register_buffer("matrix", rows, persistent=False)
        self.register_buffer("inverse", torch.linalg.pinv(rows), persistent=False)
        self.register_buffer("value", torch.as_tensor(value, dtype=torch.float64), persistent=False)

    def project(self, x: Tensor) -> Tensor:
        flat = x.flatten(1)
        if flat.shape[1] != self.matrix.shape[1]:
            raise UserError(f"the constraint is about {self.matrix.shape[1]} features, the events have {flat.shape[1]}")
        residual = flat @ self.matrix.T.to(x.dtype) - self.value.to(x.dtype)
        return (flat - residual @ self.inverse.T.to(x.dtype)).reshape(x.shape)
