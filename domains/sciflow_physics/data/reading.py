"""Files of collision data as rows: `read` a whole file, `iterate` over one that does not fit into memory, `count`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import xarray as xr

from sciflow.errors import UserError
from sciflow_physics.data.formats import Source, open_source
from sciflow_physics.data.roles import Roles
from sciflow_physics.data.rows import rows_of

__all__ = ["count", "iterate", "read", "slices"]


def read(path: str | Path, roles: Roles, *, tree: str | None = None, entries: tuple[int, int] | None = None) -> xr.Dataset:
    """The selected rows of a file, one per object, in the order (entry, object).

    Arguments:
        path: a ROOT, parquet, HDF5 or CSV file, by its ending.
        tree: the TTree or HDF5 group, where there are several.
        entries: only the entries [start, stop) of the file.

    Returns a `Dataset` with the one dimension `row`: a float64 variable per role with its unit in `attrs["units"]`
    (a feature is 0 where its `present` expression says that it does not exist), `weight` (ones without a weight role),
    `category` (str) if there is one; coordinates `event`, `id` (see `sciflow_physics.data.identity`), `entry` and `object`.

    Raises `UserError` naming file and column: missing columns, NaN or infinity in a selected row, no selected row.
    """
    with open_source(path, tree) as source:
        start, stop = entries or (0, source.entries)
        parts = [part for _, part in slices(source, roles, start, stop, max(stop - start, 1))]
        if not parts or not parts[0].sizes["row"]:
            raise UserError(_nothing(source, roles))
        return parts[0]


def iterate(path: str | Path, roles: Roles, rows_per_chunk: int = 100_000, *, tree: str | None = None) -> Iterator[xr.Dataset]:
    """The rows of `read` in pieces of about `rows_per_chunk` rows before selection; the objects of an entry stay together.

    Values and ids do not depend on `rows_per_chunk`. Pieces without a selected row are left out.
    """
    if rows_per_chunk < 1:
        raise UserError(f"rows_per_chunk is {rows_per_chunk}, at least 1 is needed")
    per_entry = len(roles.objects.suffixes) or 1 if roles.objects else 1
    with open_source(path, tree) as source:
        found = False
        for _, part in slices(source, roles, 0, source.entries, max(rows_per_chunk // per_entry, 1)):
            if part.sizes["row"]:
                found = True
                yield part
        if not found:
            raise UserError(_nothing(source, roles))


def count(path: str | Path, *, tree: str | None = None) -> int:
    """Number of entries (events) of a file."""
    with open_source(path, tree) as source:
        return source.entries


def slices(source: Source, roles: Roles, start: int, stop: int, step: int) -> Iterator[tuple[int, xr.Dataset]]:
    """(first entry, its rows) for consecutive slices of an open file; rows may be none."""
    if not 0 <= start < stop <= source.entries:
        raise UserError(f"{source.label}: entries {start} to {stop} are not within 0 to {source.entries}")
    names = roles.columns(source.names, source.label)
    for first, columns in source.chunks(names, start, stop, step):
        entries = min(step, stop - first)
        yield first, rows_of(columns, roles, entries=entries, offset=first, file=source.label)


def _nothing(source: Source, roles: Roles) -> str:
    chosen = f" pass the selection {roles.selection.text!r}" if roles.selection else " have an object to select"
    return f"{source.label}: none of its {source.entries} entries{chosen} (of {roles.source})"
