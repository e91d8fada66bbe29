"""The Domain contract and the registry of installed domains (entry points of the group "sciflow.domains")."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sciflow.arguments import resolve as load
from sciflow.arguments import split_path
from sciflow.errors import UserError

__all__ = ["GROUP", "Domain", "Unavailable", "domain", "domains", "load"]

GROUP = "sciflow.domains"


@dataclass(frozen=True)
class Domain:
    """What a domain tells the engine: names of things, never the things, so that asking for help imports nothing heavy.

    A package declares one in its `__init__.py` and registers it in its `pyproject.toml`:

        [project.entry-points."sciflow.domains"]
        physics = "sciflow_physics:domain"

    Arguments:
        name: the sub-command, `sciflow <name>`.
        summary: one line for the help text.
        commands: "module:attribute" of a click command or group.
        demo: "module:attribute" of a function `run(output: Path)` that writes its results below `output`.
        extra: what to install if a module is missing: an extra of sciflow ("physics") or a requirement ("mine[all]").

    >>> Domain("toy", "Toys.", commands="toy.commands:toy", demo="toy.demo:run", extra="toys").requirement
    'sciflow[toys]'
    """

    name: str
    summary: str
    commands: str
    demo: str
    extra: str = ""

    def __post_init__(self) -> None:
        for field in ("commands", "demo"):
            split_path(getattr(self, field))

    @property
    def requirement(self) -> str:
        """What `pip install` needs for everything this domain does; "" if it declares nothing."""
        return f"sciflow[{self.extra}]" if self.extra.isidentifier() else self.extra

    def load_commands(self) -> Any:
        """The click command or group of this domain."""
        return self._load(self.commands)

    def load_demo(self) -> Callable[[Path], Any]:
        """The function `run(output)`."""
        found: Callable[[Path], Any] = self._load(self.demo)
        return found

    def _load(self, path: str) -> Any:
        try:
            return load(path)
        except ModuleNotFoundError as error:
            missing, own = error.name or str(error), split_path(path)[0].partition(".")[0]
            if missing.partition(".")[0] == own:
                raise UserError(f"the domain {self.name!r} names {path}, but its package has no module {missing}") from error
            hint = f"pip install '{self.requirement}'" if self.requirement else f"install {missing}"
            raise UserError(
                f"the domain {self.name!r} needs the package {missing!r}, which is not installed: {hint}"
            ) from error


@dataclass(frozen=True)
class Unavailable:
    """A registered domain whose declaration could not be read, and why (one line)."""

    name: str
    reason: str


def domains() -> dict[str, Domain | Unavailable]:
    """Every registered domain by name, sorted; a declaration that cannot be read is listed with its reason.

    Only the declarations are imported. Of two packages that register one name, the first by package name is taken.
    """
    found: dict[str, Domain | Unavailable] = {}
    points = importlib.metadata.entry_points(group=GROUP)
    for point in sorted(points, key=lambda point: (point.name, point.dist.name if point.dist else "")):
        if point.name not in found:
            found[point.name] = _declaration(point)
    return found


def domain(name: str) -> Domain:
    """The domain of that name; `UserError` if it is not registered or its declaration cannot be read."""
    known = domains()
    if name not in known:
        raise UserError(f"there is no domain {name!r}; registered: {', '.join(known) or 'none'}")
    found = known[name]
    if isinstance(found, Unavailable):
        raise UserError(f"the domain {name!r} is not available: {found.reason}")
    return found


def _declaration(point: importlib.metadata.EntryPoint) -> Domain | Unavailable:
    package = f" (registered by {point.dist.name})" if point.dist else ""
    try:
        found = point.load()
    except (Exception, SystemExit) as error:  # foreign code: whatever it raises must not take the command line down
        message = " ".join(str(error).split()) or "no message"
        return Unavailable(point.name, f"{point.value} raises {type(error).__name__}: {message}{package}")
    if not isinstance(found, Domain):
        return Unavailable(point.name, f"{point.value} is a {type(found).__name__}, not a sciflow.domain.Domain{package}")
    if found.name != point.name:
        return Unavailable(point.name, f"{point.value} calls itself {found.name!r}{package}")
    return found
