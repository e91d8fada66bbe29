"""Guidance of guidance: schedules for any, and one after another."""

from __future__ import annotations

from torch import nn

from sciflow.errors import UserError
from sciflow.transport.field import Field, MixedField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.schedule import Schedule, strength_at, strength_of

__all__ = ["Composed", "Scheduled"]


class Scheduled(Guidance):
    r"""v + r(t) (v_g - v): a fraction r of another guidance, in the course of time.

    r = 0 is the unguided field, to the last bit, and 1 the guided one; for classifier-free guidance of strength w this is the
    strength 1 + r (w - 1). With `Interval(low, high)` the guidance acts there alone.

    >>> from sciflow.transport.guidance.classifier_free import ClassifierFree
    >>> from sciflow.transport.guidance.schedule import Interval
    >>> Scheduled(ClassifierFree(2.0), Interval(0.2, 0.8)).schedule
    Interval(low=0.2, high=0.8, inside=1.0, outside=0.0)
    """

    def __init__(self, guidance: Guidance, schedule: Schedule | float) -> None:
        super().__init__()
        self.wrapped, self.schedule = guidance, strength_of(schedule)

    @property
    def no_density(self) -> str | None:  # type: ignore[override]
        return self.wrapped.no_density

    def forward(self, field: Field) -> Field:
        if self.schedule == 0:
            return field
        inner = self.wrapped(field)
        if not inner.path.same(field.path) or inner.moved != field.moved:
            raise UserError(
                f"{self.wrapped!r} moves the field to another path, where velocities cannot be mixed: do not schedule it"
            )

        return MixedField(field, inner, lambda t, x: strength_at(self.schedule, t, x), field)


class Composed(Guidance):
    """Several in the order given: the first is applied to the model's field, the last has the last word.

    The same as a list of guidance of the flow. Order matters: classifier-free guidance looks for the unconditional field
    underneath, and multiplies what stands before it by its strength; energies and densities come after it, then
    `PriorGuidance`, which moves the points, and constraints last. Orders that compare different points are refused.
    """

    def __init__(self, *parts: Guidance) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    @property
    def no_density(self) -> str | None:  # type: ignore[override]
        reasons = [getattr(part, "no_density", None) for part in self.parts]
        return next((reason for reason in reasons if reason), None)

    def forward(self, field: Field) -> Field:
        for part in self.parts:
            field = part(field)
        return field
