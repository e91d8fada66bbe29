"""What the columns of a file mean: features, conditions, weight, category, event id. Read from TOML."""

from __future__ import annotations

import copy
import importlib.resources
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_physics.data.expressions import nearest
from sciflow_physics.data.role import Category, Derived, EventId, Objects, Role, Table

__all__ = ["Roles"]

_TABLES = ("selection", "derived", "objects", "event", "weight", "category", "features", "conditions", "auxiliary")
_RESERVED = ("weight", "category", "event", "id", "row", "entry", "object")


class Roles:
    """Column roles; `Roles.from_file("zee.toml")`, `Roles.from_text(...)`, `Roles.from_dict(...)`, `Roles.preset("zee")`.

    Attributes: `selection` (`Expression` or None, over event columns), `derived`, `objects`, `event`, `weight`
    (a column name or None), `category`, and the mappings `features`, `conditions`, `auxiliary` from names to `Role`.
    Raises `UserError` naming file, table and key.

    >>> roles = Roles.from_text('''
    ... [features.HoverE]
    ... transform = "log"
    ... point_mass = 0.0
    ... [conditions.pt]
    ... unit = "GeV"
    ... ''')
    >>> roles
    Roles(features=['HoverE'], conditions=['pt'], auxiliary=[])
    >>> roles.features["HoverE"].point_mass
    0.0
    """

    def __init__(self, tables: Mapping[str, Any], source: str = "roles") -> None:
        self.source = source
        self._tables = _plain(tables)
        top = Table(self._tables, source, "")
        top.only(_TABLES)
        self.selection = top.expression("selection")
        self.derived = {name: Derived.parse(table) for name, table in top.named("derived")}
        self.objects = Objects.parse(top.table("objects")) if "objects" in self._tables else None
        self.event = EventId.parse(top.table("event"))
        self.weight = top.table("weight").only(("column",)).text("column", required=True) if "weight" in self._tables else None
        self.category = Category.parse(top.table("category")) if "category" in self._tables else None
        self.features = {name: Role.parse(name, table, "feature") for name, table in top.named("features")}
        self.conditions = {name: Role.parse(name, table, "condition") for name, table in top.named("conditions")}
        self.auxiliary = {name: Role.parse(name, table, "auxiliary") for name, table in top.named("auxiliary")}
        self._check()

    @classmethod
    def from_file(cls, path: str | Path) -> Roles:
        """Parse a TOML file."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: cannot read the roles file: {getattr(error, 'strerror', None) or error}") from None
        return cls.from_text(text, source=str(path))

    @classmethod
    def from_text(cls, text: str, source: str = "roles") -> Roles:
        """Parse TOML text; `source` stands for the file in error messages."""
        try:
            return cls(tomllib.loads(text), source)
        except tomllib.TOMLDecodeError as error:
            raise UserError(f"{source}: not valid TOML: {error}") from None

    @classmethod
    def from_dict(cls, tables: Mapping[str, Any], source: str = "roles") -> Roles:
        """The inverse of `to_dict`."""
        return cls(tables, source)

    @classmethod
    def preset(cls, name: str) -> Roles:
        """Roles that come with the package.

        >>> Roles.preset("zee").feature_names
        ['sigmaEtaEta', 'HoverE', 'isoTrack', 'isoEcal', 'isoHcal']
        """
        folder = importlib.resources.files("sciflow_physics") / "presets"
        known = sorted(entry.name.removesuffix(".toml") for entry in folder.iterdir() if entry.name.endswith(".toml"))
        if name not in known:
            raise UserError(f"no preset {name!r}{nearest(name, known)}; there are {', '.join(known)}")
        return cls.from_text((folder / f"{name}.toml").read_text(encoding="utf-8"), source=f"preset {name}")

    def to_dict(self) -> dict[str, Any]:
        """Plain nested dictionaries of strings, numbers and lists: what the TOML said."""
        return copy.deepcopy(self._tables)

    @property
    def feature_names(self) -> list[str]:
        return list(self.features)

    @property
    def condition_names(self) -> list[str]:
        return list(self.conditions)

    @property
    def variables(self) -> dict[str, Role]:
        """Features, conditions and auxiliary roles together."""
        return {**self.features, **self.conditions, **self.auxiliary}

    def mask(self, dataset: xr.Dataset) -> NDArray[np.bool_]:
        """True where a feature is present, shape (N, D); by the roles' `present` expressions."""
        rows = dataset.sizes["row"]
        mask = np.ones((rows, len(self.features)), bool)
        for index, role in enumerate(self.features.values()):
            if role.present is not None:
                mask[:, index] = role.present({name: dataset[name].values for name in role.present.names})
        return mask

    def matrix(self, dataset: xr.Dataset, names: Sequence[str]) -> NDArray[np.float64]:
        """Columns of the dataset side by side, float64 (N, len(names)); absent features are 0."""
        if not names:
            return np.empty((dataset.sizes["row"], 0))
        return np.stack([np.asarray(dataset[name].values, np.float64) for name in names], axis=1)

    def columns(self, available: Iterable[str], file: str, *, event: bool = True) -> list[str]:
        """The columns of a file that these roles need, in the file's order; `UserError` naming the missing ones."""
        order = list(available)
        have, needed, missing = set(order), set[str](), dict[str, str]()
        for name, user in self._used(have):
            parts = [name + suffix for suffix in self.objects.suffixes] if self.objects else []
            if parts and have.issuperset(parts):
                needed.update(parts)
            elif name in have:
                needed.add(name)
            else:
                missing.setdefault(name, user)
        if missing:
            name, user = next(iter(missing.items()))
            stacked = f" (nor {name}{' and '.join(self.objects.suffixes)})" if self.objects and self.objects.suffixes else ""
            others = f" and {len(missing) - 1} more ({', '.join(list(missing)[1:])})" if len(missing) > 1 else ""
            raise UserError(
                f"{file}: no column {name!r}{stacked}{others}, which {user} of {self.source} needs{nearest(name, order)}; "
                f"the file has {_shorten(order)}"
            )
        return [name for name in order if name in needed]

    def has_event_id(self, available: Iterable[str]) -> bool:
        """Whether events are numbered by columns; otherwise by their row in the file."""
        have = set(available) | set(self.derived)
        return bool(self.event.id) and (not self.event.optional or have.issuperset(self.event.id))

    def __repr__(self) -> str:
        return f"Roles(features={self.feature_names}, conditions={self.condition_names}, auxiliary={list(self.auxiliary)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Roles) and self._tables == other._tables

    __hash__ = None  # type: ignore[assignment]

    def _used(self, have: set[str]) -> Iterator[tuple[str, str]]:
        """(file column, who needs it) for everything that is not derived."""
        direct: list[tuple[str, str]] = []
        if self.selection:
            direct += [(name, "selection") for name in self.selection.names]
        if self.objects:
            direct += [(name, "[objects]") for name in self.objects.names]
        if self.has_event_id(have):
            direct += [(name, "[event] id") for name in self.event.id]
        if self.event.object:
            direct.append((self.event.object, "[event] object"))
        if self.weight:
            direct.append((self.weight, "[weight] column"))
        if self.category:
            direct.append((self.category.column, "[category] column"))
        for kind in ("features", "conditions", "auxiliary"):
            direct += [(role.column, f"[{kind}.{name}]") for name, role in getattr(self, kind).items()]
        seen: set[str] = set()
        while direct:
            name, user = direct.pop(0)
            if name in self.derived and name not in seen:
                seen.add(name)
                direct += [(inner, f"[derived.{name}]") for inner in self.derived[name].expression.names]
            elif name not in self.derived:
                yield name, user

    def _check(self) -> None:
        if not self.features:
            raise UserError(f"{self.source}: no features: add at least one table [features.NAME]")
        names = [*self.features, *self.conditions, *self.auxiliary]
        for name in names:
            if name in _RESERVED:
                raise UserError(f'{self.source}: the name {name!r} is reserved; rename the table and say column = "{name}"')
            if names.count(name) > 1:
                raise UserError(f"{self.source}: {name!r} has two roles; keep one of [features], [conditions], [auxiliary]")
        for name, role in self.features.items():
            for used in role.scale.names if role.scale else ():
                if used not in self.conditions:
                    raise UserError(
                        f"{self.source}: [features.{name}] scale: {used!r} is none of the conditions"
                        f"{nearest(used, self.condition_names)}"
                    )
            if role.scale and role.point_mass:
                raise UserError(f"{self.source}: [features.{name}] has a scale, so its point_mass can only be 0")
            for used in role.present.names if role.present else ():
                if used not in names and not (used == "category" and self.category):
                    raise UserError(
                        f"{self.source}: [features.{name}] present: {used!r} is none of the roles"
                        f"{nearest(used, [*names, 'category'])}"
                    )
                if used in self.features and self.features[used].present:
                    raise UserError(
                        f"{self.source}: [features.{name}] present may not depend on {used!r}, which may be absent itself"
                    )
        for name in self.derived:
            self._acyclic(name, ())

    def _acyclic(self, name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise UserError(f"{self.source}: [derived] goes in a circle: {' -> '.join([*path, name])}")
        for inner in self.derived[name].expression.names:
            if inner in self.derived:
                self._acyclic(inner, (*path, name))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _shorten(names: Sequence[str], most: int = 30) -> str:
    return ", ".join(names[:most]) + (f", ... ({len(names)} in all)" if len(names) > most else "")
