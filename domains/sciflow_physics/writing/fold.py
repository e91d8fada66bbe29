"""From corrected rows back to the layout of the file: one value per entry, suffixed columns or lists per event."""

from __future__ import annotations

from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Columns
from sciflow_physics.data.rows import Layout

__all__ = ["clashing", "fold"]


def fold(layout: Layout, rows: xr.Dataset, corrected: xr.Dataset | None) -> Columns:
    """The new columns of a slice, all of its entries and objects.

    A variable `<feature>_<something>` that the correction added is named after the column of the feature,
    `<column>_<something>`, and holds the uncorrected value for objects that are not rows, where the feature is absent,
    and where the correction is not finite. Other added variables keep their name; where there is no row they are False,
    0, or 1 for a weight. `corrected` says which objects were corrected. Names get the suffix of the object where the file
    has suffixes: `pt1_corr`, `corrected1`.

    `corrected` is what the correction returned for `rows`, None if there was no row at all; then no column is returned.
    """
    if corrected is None:
        return {}
    if corrected.sizes.get("row") != rows.sizes["row"]:
        raise ValueError(f"the correction returned {dict(corrected.sizes)} for {rows.sizes['row']} rows")
    roles = layout.roles
    objects = len(layout.entry)
    at = layout.starts[rows["entry"].values - layout.offset] + rows["object"].values
    names = [str(name) for name in corrected.data_vars if name not in rows.variables]
    owners = {name: _feature_of(name, roles.feature_names) for name in names}
    good = np.ones(rows.sizes["row"], bool)
    for name in names:
        values = corrected[name].values
        if values.dtype.kind == "f":
            good &= np.isfinite(values)
    present = dict(zip(roles.feature_names, roles.mask(rows).T, strict=True))

    new: Columns = {}
    for name in names:
        values, feature = corrected[name].values, owners[name]
        if feature is not None:
            role = roles.features[feature]
            full = layout.lifted(role.column).astype(np.float64)
            use = good & present[feature]
            base = feature if role.column in roles.derived else role.column
            name = base + name[len(feature) :]
        else:
            full = np.full(objects, values.dtype.type(name.startswith("weight")), values.dtype)
            use = good
        full[at[use]] = values[use]
        if name == "out_of_support":
            full[at[~good]] = True
        new.update(_unstack(name, full, layout))
    flag = np.zeros(objects, bool)
    flag[at[good]] = True
    new.update(_unstack("corrected", flag, layout))
    return new


def _unstack(name: str, values: NDArray, layout: Layout) -> dict[str, Any]:
    objects = layout.roles.objects
    if objects is None:
        return {name: values}
    if objects.suffixes:
        table = values.reshape(layout.entries, len(objects.suffixes))
        stem, middle = _stem(name, layout)
        return {f"{stem}{suffix}{middle}": np.ascontiguousarray(table[:, j]) for j, suffix in enumerate(objects.suffixes)}
    import awkward as ak

    return {name: ak.unflatten(values, layout.counts)}


def _stem(name: str, layout: Layout) -> tuple[str, str]:
    """Where the suffix goes: after the column's own name, as in pt1_corr; at the end of everything else."""
    roles = layout.roles
    stems = [role.column for role in roles.features.values()] + roles.feature_names
    found = max((stem for stem in stems if name.startswith(f"{stem}_")), key=len, default=name)
    return found, name[len(found) :]


def _feature_of(name: str, features: list[str]) -> str | None:
    return max((feature for feature in features if name.startswith(f"{feature}_")), key=len, default=None)


def clashing(new: Columns, names: list[str], file: str) -> None:
    """`UserError` if the file already has one of the new columns."""
    both = [name for name in new if name in names]
    if both:
        raise UserError(
            f"{file}: already has the column {both[0]!r} (of {len(both)} such); was it corrected before? write a friend tree"
        )
