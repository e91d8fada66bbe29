"""How the curve and the band of one column follow from data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.preprocessing.column import Column
from sciflow.preprocessing.curves import Curves
from sciflow.preprocessing.statistics import quantile

__all__ = ["FittedCurve", "check", "fit_curve"]

# distance between the band of a point mass and the continuum, in standard deviations of the latter
_GAP = 0.02


class FittedCurve(NamedTuple):
    """Numbers of one column, in its physical units."""

    origin: float
    span: float
    floor: float
    ceiling: float
    gap: float
    width: float
    least: float


def check(columns: Sequence[Column], x: Tensor, weight: Tensor, present: Tensor) -> None:
    """Refuse what cannot be fitted, naming the column: this is where data enter."""
    if weight.shape != x.shape[:1] or present.shape != x.shape:
        raise ValueError(
            f"x has shape {tuple(x.shape)}, weight {tuple(weight.shape)}, mask {tuple(present.shape)}: "
            "expected (N, D), (N,) and (N, D)"
        )
    if len(x) == 0:
        raise UserError("the table has no rows: there is nothing to fit the preprocessing to; look at the selection")
    if not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()) or not bool(weight.sum() > 0):
        raise UserError("weights must be finite, not negative and not all zero; replace signed weights by positive ones first")
    for j, column in enumerate(columns):
        values = x[present[:, j] & (weight > 0), j]
        if len(values) == 0:
            raise UserError(f"column {column.name!r} is absent in every row (or every weight is 0): drop it or mend its mask")
        bad = int((~torch.isfinite(values)).sum())
        if bad:
            raise UserError(
                f"column {column.name!r} has {bad} of {len(values)} values that are not finite; mask or remove them"
            )
        continuum = _continuum(column, values)
        if len(continuum) == 0:
            raise UserError(f"column {column.name!r} has zero variance: it is {float(values[0]):g} everywhere; drop it")
        low, high, open_ends = _domain(column)
        outside = (continuum <= low) | (continuum >= high) if open_ends else (continuum < low) | (continuum > high)
        if bool(outside.any()):
            value = float(continuum[outside][0])
            raise UserError(
                f"column {column.name!r} has {int(outside.sum())} values outside the range of its transform "
                f"{column.transform!r} ({low:g} to {high:g}), for example {value:g}; change the bounds or declare a point mass"
            )


def fit_curve(column: Column, values: Tensor, weight: Tensor, *, uniform: bool) -> FittedCurve:
    """The curve of one column from its present values (n,) and their weights (n,)."""
    used = weight > 0
    values, weight = values[used], weight[used]
    heavy = torch.ones_like(values, dtype=torch.bool) if column.point_mass is None else values != column.point_mass
    continuum, mass = values[heavy], weight[heavy]
    least, most = float(continuum.min()), float(continuum.max())
    low, middle, high = quantile(continuum, mass, (0.16, 0.5, 0.84)).tolist()
    spread = (high - low) / 2 or (most - least) or 1.0
    floor, ceiling, origin, span = least, most, 0.0, 1.0
    if column.transform == "log":
        bottom = 0.0 if column.lower is None else column.lower
        shift = column.shift
        if shift is None:
            # with a point mass the curve must reach the bound itself; softened on the scale of the typical value, the density
            # beside the band is flat, and the flow has no notch to learn there
            shift = 0.0 if column.point_mass is None else max(middle - bottom, 1e-3 * spread)
        origin = bottom - shift
        floor = bottom if shift > 0 else origin + (least - origin) / 10
        ceiling = origin + 10 * (most - origin)
    elif column.transform in ("logit", "bounded"):
        lower, upper = float(column.lower or 0.0), float(1.0 if column.upper is None else column.upper)
        extra = 0.0 if column.transform == "logit" else 1e-3 * (upper - lower)
        origin, span = lower - extra, upper - lower + 2 * extra
        floor, ceiling = origin + (least - origin) / 10, origin + span - (origin + span - most) / 10
    if column.point_mass is None:
        return FittedCurve(origin, span, floor, ceiling, 0.0, 1.0, least)
    if column.transform == "none":
        adjacent = 0 <= least - column.point_mass < spread
        floor = column.point_mass if adjacent else least - 0.01 * spread
    elif column.transform != "log" or floor != column.lower:
        floor = origin + 0.9 * (least - origin)
    curve = Curves([column.transform])
    curve.origin[0], curve.span[0], curve.floor[0], curve.ceiling[0] = origin, span, floor, ceiling
    curve = curve.to(continuum.device)
    edge, log_slope = (float(entry) for entry in curve(torch.tensor([[floor]], dtype=torch.float64, device=continuum.device)))
    left, near, right = quantile(curve(continuum[:, None])[0][:, 0], mass, (0.16, 0.15, 0.84)).tolist()
    deviation = (right - left) / 2 or 1.0
    probability = float(weight[~heavy].sum() / weight.sum())
    # as wide as makes the density of the band meet that of the lowest 15 % of the continuum: no step for the flow to learn
    height = 0.15 * (1 - probability) / max(near - edge, 1e-3 * deviation)
    width = probability / height * (1.0 if uniform else 2.0)
    width = min(max(width, 0.5 * deviation), 6 * deviation)
    slope = float(torch.tensor(log_slope).exp())
    return FittedCurve(origin, span, floor, ceiling, _GAP * deviation / slope, width / slope, least)


def _continuum(column: Column, values: Tensor) -> Tensor:
    return values if column.point_mass is None else values[values != column.point_mass]


def _domain(column: Column) -> tuple[float, float, bool]:
    if column.transform == "none":
        return -float("inf"), float("inf"), False
    if column.transform == "log":
        bottom = 0.0 if column.lower is None else column.lower
        softened = (column.shift or 0.0) > 0 or (column.shift is None and column.point_mass is not None)
        return (bottom, float("inf"), False) if softened else (bottom, float("inf"), True)
    return float(column.lower or 0.0), float(1.0 if column.upper is None else column.upper), column.transform == "logit"
