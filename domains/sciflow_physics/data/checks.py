"""Checks of values where they enter: each complaint names file, column, count and first entry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_physics.data.roles import Roles

__all__ = ["categories", "finite", "whole"]


def finite(values: NDArray, there: NDArray | None, file: str, column: str, entry: NDArray) -> NDArray[np.float64]:
    if values.dtype.kind not in "iufb":
        example = f" ({str(values[0])!r} at entry {entry[0]})" if len(values) else ""
        raise UserError(f"{file}: column {column!r} holds text{example}, numbers are needed")
    values = values.astype(np.float64)
    bad = ~np.isfinite(values)
    if there is not None:
        bad &= there
        values = np.where(there, values, 0.0)
    if bad.any():
        first = int(np.flatnonzero(bad)[0])
        raise UserError(
            f"{file}: column {column!r} has {int(bad.sum())} NaN or infinite values, the first at entry {entry[first]}"
        )
    return values


def whole(values: NDArray, file: str, column: str, entry: NDArray) -> NDArray[np.int64]:
    if values.dtype.kind in "iub":
        return values.astype(np.int64)
    if values.dtype.kind != "f" or not np.array_equal(values, np.floor(values)) or not (np.abs(values) < 2.0**53).all():
        at = 0 if values.dtype.kind != "f" else int(np.argmax(~((values == np.floor(values)) & (np.abs(values) < 2.0**53))))
        raise UserError(f"{file}: column {column!r} must hold whole numbers, it is {values[at]} at entry {entry[at]}")
    return values.astype(np.int64)


def categories(values: NDArray, roles: Roles, file: str, entry: NDArray) -> NDArray:
    assert roles.category is not None
    if values.dtype.kind == "f":
        values = whole(values, file, roles.category.column, entry)
    text = values.astype(str)
    if roles.category.values:
        foreign = ~np.isin(text, roles.category.values)
        if foreign.any():
            at = int(np.flatnonzero(foreign)[0])
            raise UserError(
                f"{file}: column {roles.category.column!r} is {str(text[at])!r} at entry {entry[at]} "
                f"({int(foreign.sum())} such rows); "
                f"[category] values of {roles.source} are {', '.join(roles.category.values)}"
            )
    return text
