"""Correct a file of any size, slice by slice, into another file."""

from __future__ import annotations

import contextlib
import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import xarray as xr

from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow_physics.data.formats import Source, is_jagged, open_source
from sciflow_physics.data.formats.base import Carrier, Columns
from sciflow_physics.data.roles import Roles
from sciflow_physics.data.rows import Layout
from sciflow_physics.writing.fold import clashing, fold
from sciflow_physics.writing.targets import Mode, mode_of, sink_for
from sciflow_physics.writing.watching import entries_bar

__all__ = ["Applied", "Corrects", "apply_file", "part"]

_log = logging.getLogger(__name__)


class Corrects(Protocol):
    """What `apply_file` needs of a correction."""

    def apply(self, rows: xr.Dataset, /) -> xr.Dataset:
        """The rows with added variables, aligned with the argument; what is added to
        a row depends on the row alone, to the last bit."""


@dataclass(frozen=True)
class Applied:
    """What was written."""

    path: Path
    mode: str
    entries: int
    rows: int
    flagged: int
    seconds: float

    def __str__(self) -> str:
        rate = self.rows / max(self.seconds, 1e-9)
        support = f", {self.flagged:,} of them out of support" if self.flagged else ""
        if 2 * self.flagged > self.rows:
            support += " (more than half: are its units and selection those of the fit?)"
        done = f"{self.rows:,} corrected rows in {self.entries:,} entries"
        return f"{self.path}: {done}{support}; {self.seconds:.1f} s, {rate:,.0f} rows/s"


def apply_file(
    correction: Corrects,
    source: str | Path,
    output: str | Path,
    roles: Roles,
    *,
    tree: str | None = None,
    mode: Mode | None = None,
    chunk: tuple[int, int] | None = None,
    rows_per_chunk: int = 50_000,
    provenance: dict[str, Any] | None = None,
    progress: bool = True,
) -> Applied:
    """Correct the file `source` and write `output`, whose ending says the format.

    Arguments:
        mode: "friend": a tree `corr` of the new columns, of the length and order of the input (the default from ROOT to
            ROOT); "in-place": a copy of a ROOT file with added branches (output may be the input, which is then
            replaced at once); "copy": all original columns, bit by bit, and the new ones (the default otherwise).
        chunk: (i, n) for the i-th of n parts, i = 1 .. n. The parts one after another are the whole, bit by bit.
        rows_per_chunk: rows in memory at a time; the result does not depend on it.

    Entries and objects that fail the selection keep their values, with `corrected` false. Nothing is left behind on an
    error or an interruption. Memory does not depend on the length of the file, except for "in-place".

    Raises `UserError` as `sciflow_physics.data.read` does, on a name that the file has already, and if nothing is selected.
    """
    source, output = Path(source), Path(output)
    start_time = time.monotonic()
    with open_source(source, tree) as opened:
        chosen = mode_of(mode, opened, output, chunk)
        start, stop = part(opened.entries, *(chunk or (1, 1)), label=opened.label)
        names = roles.columns(opened.names, opened.label)
        step = max(rows_per_chunk // (len(roles.objects.suffixes) or 1 if roles.objects else 1), 1)
        record = {"source": source.name, "entries": [start, stop], "mode": chosen, **(provenance or {})}
        if not output.parent.is_dir():
            raise UserError(f"{output}: the folder {output.parent} does not exist")
        tally = _Tally()
        with _named(output), replacing(output) as beside, entries_bar(stop - start, progress) as advance:
            sink = sink_for(chosen, opened, beside, output, json.dumps(record, sort_keys=True), names, roles)
            try:
                for original, new in _slices(correction, opened, roles, names, (start, stop, step), chosen == "copy", tally):
                    if chosen != "friend":
                        clashing(new, opened.names, opened.label)
                    sink.write(original, new)
                    advance(len(next(iter(new.values()))))
                if tally.rows == 0 and chunk is None:
                    raise UserError(f"{opened.label}: none of its {opened.entries} entries is selected by {roles.source}")
                sink.finish()
            except BaseException:
                sink.abort()
                raise
    if tally.rows == 0:
        _log.warning("%s: entries %d to %d have no selected row; all values are uncorrected", source, start, stop)
    return Applied(output, chosen, stop - start, tally.rows, tally.flagged, time.monotonic() - start_time)


def part(entries: int, i: int, n: int, *, label: str = "the file") -> tuple[int, int]:
    """The entries [start, stop) of the i-th of n parts, i = 1 .. n.

    >>> [part(10, i, 3) for i in (1, 2, 3)]
    [(0, 3), (3, 6), (6, 10)]
    """
    if not 1 <= i <= n:
        raise UserError(f"chunk {i}/{n}: the first number goes from 1 to {max(n, 1)}")
    if n > entries:
        raise UserError(f"chunk {i}/{n}: {label} has only {entries} entries")
    return entries * (i - 1) // n, entries * i // n


@contextlib.contextmanager
def _named(output: Path) -> Iterator[None]:
    """Reading names its file itself; whatever else the system refuses is about the output."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{output}: cannot be written: {reason(error)}") from error


class _Tally:
    rows = 0
    flagged = 0


def _slices(
    correction: Corrects,
    source: Source,
    roles: Roles,
    names: list[str],
    where: tuple[int, int, int],
    carry: bool,
    tally: _Tally,
) -> Iterator[tuple[Carrier | None, Columns]]:
    start, stop, step = where
    pieces: Iterator[tuple[int, Columns, Carrier | None]]
    if carry:
        pieces = source.carriers(names, start, stop, step)  # type: ignore[assignment]
    else:
        pieces = ((first, columns, None) for first, columns in source.chunks(names, start, stop, step))
    for first, columns, original in pieces:
        layout = Layout(columns, roles, min(step, stop - first), first, source.label)
        rows = layout.rows()
        new = fold(layout, rows, _corrected(correction, rows, roles))
        tally.rows += rows.sizes["row"]
        tally.flagged += _flagged(new)
        yield original, new


def _corrected(correction: Corrects, rows: xr.Dataset, roles: Roles) -> xr.Dataset:
    if rows.sizes["row"]:
        return correction.apply(rows)
    # a slice without a row still has every column: correct one made-up row and drop it
    made = xr.Dataset(
        {name: ("row", _typical(rows[name].values, str(name), roles), rows[name].attrs) for name in rows.data_vars},
        {name: ("row", [0]) for name in rows.coords},
    )
    return correction.apply(made).isel(row=slice(0, 0))


def _typical(values: Any, name: str, roles: Roles) -> list:
    if values.dtype.kind == "U":
        return [roles.category.values[0] if roles.category and roles.category.values else ""]
    role = roles.variables.get(name)
    if role is not None and role.lower is not None and role.upper is not None:
        return [(role.lower + role.upper) / 2]
    return [0.5]


def _flagged(new: Columns) -> int:
    columns = [column for name, column in new.items() if name.startswith("out_of_support")]
    if columns and is_jagged(columns[0]):
        import awkward as ak

        return int(ak.sum(columns[0]))
    return int(sum(column.sum() for column in columns))
