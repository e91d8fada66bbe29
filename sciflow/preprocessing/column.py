"""What is known beforehand about one column: its shape, its bounds and the value it takes with positive probability."""

from __future__ import annotations

from sciflow.errors import UserError
from sciflow.recorded import Recorded

__all__ = ["Column", "TRANSFORMS"]

TRANSFORMS = ("none", "log", "logit", "bounded")


class Column(Recorded):
    r"""One column of a table and the map that makes it roughly normal.

    Arguments:
        name: used in messages.
        transform: with x in the column's own units,

            - "none": u = x
            - "log": u = log(x - lower + shift), for heavy-tailed columns above `lower` (0 by default)
            - "logit": u = log(r / (1 - r)), r = (x - lower) / (upper - lower) in the open interval (0, 1)
            - "bounded": as logit, but the bounds themselves occur: the interval is widened by 0.1 % on both sides

        lower, upper: the bounds, in the units of the column.
        shift: of the logarithm, in the units of the column; by default 0, or fitted where there is a point mass.
        point_mass: an exact value with positive probability; it is dequantised into a band below the continuum.

    Raises `UserError`, naming the column, where transform and bounds do not fit together.

    >>> Column("hoe", transform="log", point_mass=0.0)
    Column('hoe', log, point mass 0)
    """

    def __init__(
        self,
        name: str,
        *,
        transform: str = "none",
        lower: float | None = None,
        upper: float | None = None,
        shift: float | None = None,
        point_mass: float | None = None,
    ) -> None:
        if transform not in TRANSFORMS:
            raise UserError(f"column {name!r}: transform {transform!r} is not one of {', '.join(TRANSFORMS)}")
        if transform == "bounded" and (lower is None or upper is None):
            raise UserError(f"column {name!r}: the transform 'bounded' needs both lower and upper")
        if transform == "logit":
            lower, upper = (0.0 if lower is None else lower), (1.0 if upper is None else upper)
        if lower is not None and upper is not None and not lower < upper:
            raise UserError(f"column {name!r}: lower = {lower:g} is not below upper = {upper:g}")
        if shift is not None and (transform != "log" or shift < 0):
            raise UserError(f"column {name!r}: a shift belongs to the transform 'log' and is not negative, got {shift:g}")
        self.name, self.transform, self.point_mass = name, transform, point_mass
        self.lower = 0.0 if transform == "log" and lower is None else lower
        self.upper, self.shift = upper, shift

    def __repr__(self) -> str:
        mass = "" if self.point_mass is None else f", point mass {self.point_mass:g}"
        return f"Column({self.name!r}, {self.transform}{mass})"
