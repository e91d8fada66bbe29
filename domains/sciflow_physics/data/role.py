"""The tables of a roles file, one small class each, and the checks of their keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sciflow.errors import UserError
from sciflow_physics.data.expressions import Expression, nearest

__all__ = ["Category", "Derived", "EventId", "Objects", "Role", "Table"]

TRANSFORMS = ("none", "log", "logit", "bounded")


class Table:
    """One TOML table with its place, so that every complaint says file, table and key."""

    def __init__(self, entries: Any, source: str, path: str) -> None:
        self.entries, self.source, self.path = entries, source, path
        if not isinstance(entries, Mapping):
            raise self.error(None, f"must be a table, got {entries!r}")

    def error(self, key: str | None, message: str) -> UserError:
        table = f" [{self.path}]" if self.path else ""
        return UserError(f"{self.source}:{table}{f' {key}' if key else ''}: {message}")

    def only(self, known: Sequence[str]) -> Table:
        for key in self.entries:
            if key not in known:
                raise self.error(None, f"unknown key {key!r}{nearest(key, known)}; known are {', '.join(known)}")
        return self

    def table(self, key: str) -> Table:
        return Table(self.entries.get(key, {}), self.source, f"{self.path}.{key}".lstrip("."))

    def named(self, key: str) -> Iterator[tuple[str, Table]]:
        outer = self.table(key)
        for name in outer.entries:
            if not name.isidentifier():
                raise outer.error(name, 'a name must be letters, digits and _; give the file\'s name as column = "..."')
            yield name, outer.table(name)

    def text(self, key: str, default: str | None = None, *, required: bool = False) -> str | None:
        if required and key not in self.entries:
            raise self.error(key, "is missing")
        value = self.entries.get(key, default)
        if value is not None and not isinstance(value, str):
            raise self.error(key, f"must be a string, got {value!r}")
        return value

    def texts(self, key: str) -> tuple[str, ...]:
        value = self.entries.get(key, [])
        value = [value] if isinstance(value, str) else value
        if not isinstance(value, Sequence) or not all(isinstance(entry, str) for entry in value):
            raise self.error(key, f"must be a list of strings, got {value!r}")
        if len(set(value)) < len(value):
            raise self.error(key, f"names something twice: {value!r}")
        return tuple(value)

    def number(self, key: str) -> float | None:
        value = self.entries.get(key)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, (int, float)) or abs(value) == float("inf") or value != value:
            raise self.error(key, f"must be a finite number, got {value!r}")
        return float(value)

    def flag(self, key: str) -> bool:
        value = self.entries.get(key, False)
        if not isinstance(value, bool):
            raise self.error(key, f"must be true or false, got {value!r}")
        return value

    def expression(self, key: str, *, required: bool = False) -> Expression | None:
        text = self.text(key, required=required)
        table = f" [{self.path}]" if self.path else ""
        return None if text is None else Expression(text, f"{self.source}:{table} {key}")


@dataclass(frozen=True)
class Role:
    """One variable: where it comes from, its unit, and how it is prepared for the flow."""

    name: str
    column: str
    unit: str = ""
    transform: str = "none"
    lower: float | None = None
    upper: float | None = None
    point_mass: float | None = None
    present: Expression | None = None
    symmetric: bool = False
    scale: Expression | None = None
    harmonics: int = 0

    @classmethod
    def parse(cls, name: str, table: Table, kind: str) -> Role:
        known = ["column", "unit"]
        known += ["transform", "lower", "upper"] if kind != "auxiliary" else []
        known += ["point_mass", "present", "scale"] if kind == "feature" else []
        known += ["symmetric", "harmonics"] if kind == "condition" else []
        table.only(known)
        transform = table.text("transform", "none")
        if transform not in TRANSFORMS:
            raise table.error(
                "transform", f"{transform!r} is unknown{nearest(str(transform), TRANSFORMS)}; known are {', '.join(TRANSFORMS)}"
            )
        lower, upper = table.number("lower"), table.number("upper")
        if (transform == "bounded") != (lower is not None and upper is not None):
            raise table.error("transform", "'bounded' needs lower and upper, and only it takes them")
        if lower is not None and upper is not None and lower >= upper:
            raise table.error("lower", f"{lower} is not below upper = {upper}")
        harmonics = table.number("harmonics") or 0.0
        if harmonics != int(harmonics) or not 0 <= harmonics <= 256:
            raise table.error("harmonics", f"must be a whole number from 0 to 256, got {harmonics:g}")
        return cls(
            name, table.text("column", name) or name, table.text("unit", "") or "", transform or "none",
            lower, upper, table.number("point_mass"), table.expression("present"), table.flag("symmetric"),
            table.expression("scale"), int(harmonics),
        )  # fmt: skip


@dataclass(frozen=True)
class Derived:
    """A column computed from others."""

    expression: Expression
    unit: str = ""

    @classmethod
    def parse(cls, table: Table) -> Derived:
        table.only(("expression", "unit"))
        expression = table.expression("expression", required=True)
        assert expression is not None
        return cls(expression, table.text("unit", "") or "")


@dataclass(frozen=True)
class Objects:
    """Several objects per event: suffixed columns, or jagged branches with an optional per-event index."""

    suffixes: tuple[str, ...] = ()
    jagged: bool = False
    index: Expression | None = None
    extremum: tuple[str, str] | None = None  # ("argmax" | "argmin", branch)
    selection: Expression | None = None

    @classmethod
    def parse(cls, table: Table) -> Objects:
        table.only(("suffixes", "jagged", "index", "selection"))
        suffixes, jagged = table.texts("suffixes"), table.flag("jagged")
        if bool(suffixes) == jagged:
            raise table.error(None, 'say either suffixes = ["1", "2"] or jagged = true')
        index, extremum, text = None, None, (table.text("index") or "").strip()
        if text and not jagged:
            raise table.error("index", "needs jagged = true")
        for function in ("argmax", "argmin"):
            if text.startswith(f"{function}(") and text.endswith(")") and text[7:-1].strip().isidentifier():
                extremum = (function, text[7:-1].strip())
        if text and extremum is None:
            index = table.expression("index")
        return cls(suffixes, jagged, index, extremum, table.expression("selection"))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that index and selection use."""
        used = [*(self.index.names if self.index else ()), *(self.selection.names if self.selection else ())]
        return tuple(used + [self.extremum[1]] if self.extremum else used)


@dataclass(frozen=True)
class EventId:
    """What identifies an event, and an object within it if a file has one row per object."""

    id: tuple[str, ...] = ()
    object: str | None = None
    optional: bool = False

    @classmethod
    def parse(cls, table: Table) -> EventId:
        table.only(("id", "object", "optional"))
        return cls(table.texts("id"), table.text("object"), table.flag("optional"))


@dataclass(frozen=True)
class Category:
    """A column of strings or integers that splits the rows."""

    column: str
    values: tuple[str, ...] = ()

    @classmethod
    def parse(cls, table: Table) -> Category:
        table.only(("column", "values"))
        column = table.text("column", required=True)
        assert column is not None
        values = table.entries.get("values", [])
        if not isinstance(values, Sequence) or isinstance(values, str):
            raise table.error("values", f"must be a list, got {values!r}")
        return cls(column, tuple(str(value) for value in values))
