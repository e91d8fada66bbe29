"""Fields of a space, made ready for solvers that add slopes up in ambient coordinates."""

from __future__ import annotations

from torch import Tensor

from sciflow.transport.field import Field

__all__ = ["FoldedField"]


class FoldedField(Field):
    r"""V(t, x) = S P(y) v(t, y), y = fold(x): a field for ambient points, such as the stages of a Runge-Kutta step.

    Beyond a wall it is the mirrored field (S = -1), off a sphere that of the nearest point. Guidance lies inside, so that
    it sees points of the space alone, and whatever it adds is projected on the tangents.
    """

    def __init__(self, field: Field) -> None:
        self.field = field
        self.path, self.space, self.mask = field.path, field.space, field.mask
        self.no_score, self.moved, self.shifts = field.no_score, field.moved, field.shifts

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        point, sign = self.space.fold(x)
        return self._turned(self.space.tangent(point, self.field(t, point)), sign)

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        return self.field.endpoint(t, self.space.fold(x)[0])

    def velocity_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        point, sign = self.space.fold(x)
        v, noise = self.field.velocity_and_noise(t, point)
        return self._turned(self.space.tangent(point, v), sign), noise

    def average(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        point, sign = self.space.fold(x)
        return self._turned(self.field.average(t, s, point), sign)

    def rows(self, index: Tensor) -> Field | None:
        field = self.field.rows(index)
        return None if field is None else FoldedField(field)

    def unconditional(self) -> Field:
        return FoldedField(self.field.unconditional())

    @staticmethod
    def _turned(v: Tensor, sign: Tensor | None) -> Tensor:
        return v if sign is None else sign * v
