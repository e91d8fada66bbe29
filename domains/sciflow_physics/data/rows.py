"""From columns of a file, one entry per event, to rows, one per object."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_physics.data.checks import categories, finite, whole
from sciflow_physics.data.formats.base import Columns, is_jagged
from sciflow_physics.data.identity import content_number, event_number, row_identity
from sciflow_physics.data.roles import Roles

__all__ = ["Layout", "rows_of"]

_log = logging.getLogger(__name__)


def rows_of(columns: Columns, roles: Roles, *, entries: int, offset: int, file: str) -> xr.Dataset:
    """The selected rows of consecutive entries, in the order (entry, object); possibly none.

    `offset` is the number of the first entry in the file. Rows carry the coordinates `event`, `id`, `entry` (its
    number in the file) and `object` (position of the object within the entry).
    A file without event numbers gets `event` from the values of its features and conditions, whatever part of a larger
    file it is; `id`, which numbers the random numbers of a row, then also follows `entry`.
    Raises `UserError` on NaN or infinity in a selected value.
    """
    return Layout(columns, roles, entries, offset, file).rows()


class Layout:
    """Consecutive entries of a file seen through roles: which objects there are, which become rows, and the way back.

    Columns live on one of two levels: "event" (one value per entry) or "object" (one per object, in the order
    (entry, object)). `entry` and `position` say where an object belongs, `counts` how many an entry has.
    """

    def __init__(self, columns: Columns, roles: Roles, entries: int, offset: int, file: str) -> None:
        self.columns, self.roles, self.entries, self.offset, self.file = columns, roles, entries, offset, file
        self.cache: dict[str, tuple[NDArray, str]] = {}
        objects = roles.objects
        if objects is None:
            counts = np.ones(entries, np.int64)
        elif objects.suffixes:
            counts = np.full(entries, len(objects.suffixes))
        else:
            counts = self._counts()
        self.counts = counts
        self.entry = np.repeat(np.arange(entries), counts)
        self.starts = np.cumsum(counts) - counts
        self.position = np.arange(len(self.entry)) - self.starts[self.entry]

    def resolve(self, name: str) -> tuple[NDArray, str]:
        if name not in self.cache:
            self.cache[name] = self._resolve(name)
        return self.cache[name]

    def lifted(self, name: str) -> NDArray:
        """A column with one value per object (a copy)."""
        values, level = self.resolve(name)
        return values.copy() if level == "object" else values[self.entry]

    def selected(self) -> NDArray[np.bool_]:
        """Which objects become rows."""
        roles, objects = self.roles, self.roles.objects
        keep = np.ones(len(self.entry), bool)
        if roles.selection:
            values, level = self._evaluate(roles.selection)
            if level == "object":
                raise UserError(
                    f"{roles.selection.where}: {roles.selection.text!r} depends on the object; use [objects] selection"
                )
            self._warn(roles.selection, values)
            keep &= values.astype(bool)[self.entry]
        if objects and objects.selection:
            values, level = self._evaluate(objects.selection)
            keep &= values.astype(bool) if level == "object" else values.astype(bool)[self.entry]
        if objects and (objects.index or objects.extremum):
            keep &= self.position == self._index()[self.entry]
        return keep

    def rows(self) -> xr.Dataset:
        """The selected rows."""
        roles, file, offset = self.roles, self.file, self.offset
        keep = self.selected()
        entry, position = self.entry[keep], self.position[keep]

        def take(name: str) -> NDArray:
            values, level = self.resolve(name)
            return values[keep] if level == "object" else values[entry]

        # features last: whether they are present depends on the other variables
        variables: dict[str, Any] = {}
        if roles.category:
            variables["category"] = categories(take(roles.category.column), roles, file, entry + offset)
        for name, role in {**roles.conditions, **roles.auxiliary}.items():
            variables[name] = finite(take(role.column), None, file, role.column, entry + offset)
        maybe = [name for name, role in roles.features.items() if role.present]
        for name in [name for name in roles.features if name not in maybe] + maybe:
            role = roles.features[name]
            there = None if role.present is None else np.broadcast_to(role.present(variables), len(entry))
            variables[name] = finite(take(role.column), there, file, role.column, entry + offset)
        weight = (
            np.ones(len(entry))
            if roles.weight is None
            else finite(take(roles.weight), None, file, roles.weight, entry + offset)
        )
        event, identity = self._identify(take, entry, position, variables)
        order = [*roles.features, *roles.conditions, *roles.auxiliary]
        units = {name: role.unit or _derived_unit(roles, role.column) for name, role in roles.variables.items()}
        data: dict[str, Any] = {name: ("row", variables[name], {"units": units[name]}) for name in order}
        data["weight"] = ("row", weight, {"units": "1"})
        if roles.category:
            data["category"] = ("row", variables["category"])
        coordinates = {"event": event, "id": identity, "entry": entry + offset, "object": position}
        return xr.Dataset(data, {name: ("row", values) for name, values in coordinates.items()}, {"file": file})

    def _identify(self, take: Any, entry: NDArray, position: NDArray, variables: dict) -> tuple[NDArray, NDArray]:
        roles = self.roles
        if not roles.has_event_id(self.columns):
            used = [*roles.features.values(), *roles.conditions.values()]
            event = content_number([self.lifted(role.column) for role in used], self.entry, self.entries)[entry]
            # rows may repeat where columns are few and discrete: their random numbers have to differ all the same
            return event, row_identity(event, entry + self.offset, position)
        event = event_number([whole(take(name), self.file, name, entry + self.offset) for name in roles.event.id])
        if roles.event.object:
            return event, row_identity(
                event, whole(take(roles.event.object), self.file, roles.event.object, entry + self.offset)
            )
        if roles.objects:
            return event, row_identity(event, position)
        # one row per object and no number for it: the values themselves tell two objects of an event apart
        return event, row_identity(event, *(variables[name] for name in [*roles.features, *roles.conditions]))

    def _resolve(self, name: str) -> tuple[NDArray, str]:
        objects = self.roles.objects
        if name in self.roles.derived:
            return self._evaluate(self.roles.derived[name].expression)
        if objects and objects.suffixes and all(name + suffix in self.columns for suffix in objects.suffixes):
            stacked = np.stack([self.columns[name + suffix] for suffix in objects.suffixes], axis=1)
            return stacked.reshape(-1), "object"
        column = self.columns[name]
        if not is_jagged(column):
            return column, "event"
        if not (objects and objects.jagged):
            raise UserError(
                f"{self.file}: column {name!r} holds a list per event; say jagged = true in [objects] of {self.roles.source}"
            )
        import awkward as ak

        return ak.to_numpy(ak.flatten(column, axis=1)), "object"

    def _evaluate(self, expression: Any) -> tuple[NDArray, str]:
        found = {name: self.resolve(name) for name in expression.names}
        level = "object" if any(kind == "object" for _, kind in found.values()) else "event"
        columns = {name: values[self.entry] if kind != level else values for name, (values, kind) in found.items()}
        length = len(self.entry) if level == "object" else self.entries
        return np.broadcast_to(expression(columns), length), level

    def _counts(self) -> NDArray[np.int64]:
        import awkward as ak

        first, counts = "", None
        for name, column in self.columns.items():
            if is_jagged(column):
                number = ak.to_numpy(ak.num(column, axis=1)).astype(np.int64)
                if counts is not None and not np.array_equal(number, counts):
                    entry = int(np.flatnonzero(number != counts)[0])
                    raise UserError(
                        f"{self.file}: {name!r} has {number[entry]} objects at entry {entry + self.offset}, "
                        f"{first!r} {counts[entry]}: "
                        "roles may use the branches of one collection only"
                    )
                first, counts = name, number
        if counts is None:
            raise UserError(
                f"{self.file}: none of the used columns holds a list per event; drop [objects] jagged in {self.roles.source}"
            )
        return counts

    def _index(self) -> NDArray[np.int64]:
        """Position of the chosen object per entry; negative for none."""
        objects = self.roles.objects
        assert objects is not None
        if objects.extremum:
            import awkward as ak

            function, branch = objects.extremum
            chosen = getattr(ak, function)(self.columns[branch], axis=1, mask_identity=True)
            return ak.to_numpy(ak.fill_none(chosen, -1)).astype(np.int64)
        assert objects.index is not None
        values, level = self._evaluate(objects.index)
        if level == "object":
            raise UserError(f"{objects.index.where}: {objects.index.text!r} must give one number per event")
        index = whole(values, self.file, objects.index.text, np.arange(self.entries) + self.offset)
        beyond = np.flatnonzero(index >= self.counts)
        if len(beyond):
            at = int(beyond[0])
            raise UserError(
                f"{self.file}: index {objects.index.text!r} is {index[at]} at entry {at + self.offset}, "
                f"which has {self.counts[at]} objects "
                f"({len(beyond)} such entries); negative means none"
            )
        return index

    def _warn(self, expression: Any, passed: NDArray) -> None:
        lost = np.zeros(self.entries, bool)
        for name in expression.names:
            values, _ = self.resolve(name)
            if values.dtype.kind == "f":
                lost |= ~np.isfinite(values)
        number = int((lost & ~passed.astype(bool)).sum())
        if number:
            _log.warning(
                "%s: %d entries fail the selection with a NaN or infinity in one of %s",
                self.file,
                number,
                ", ".join(expression.names),
            )


def _derived_unit(roles: Roles, column: str) -> str:
    return roles.derived[column].unit if column in roles.derived else ""
