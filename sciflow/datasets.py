"""Public data sets: found below $SCIFLOW_DATA or in the user's cache, downloaded from their official source, checked."""

from __future__ import annotations

import gzip
import hashlib
import logging
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from sciflow.errors import UserError
from sciflow.files import replacing

__all__ = ["Entry", "Verification", "cache_folder", "entries", "entry", "fetch", "find", "path", "verify"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Entry:
    """One public data set of `registry.toml`.

    `sha256` is "" if no checksum is known; `derived` is empty or {from, column, below}: the rows of another set whose
    integer column is below a bound, header first, bytes and order unchanged. A set made for this project names the
    `script` that makes it and, if it is package data, "package:path" of its gzip-compressed file in `embedded`.
    """

    name: str
    file: str
    title: str
    licence: str
    citation: str
    urls: tuple[str, ...] = ()
    sha256: str = ""
    size: int = 0
    landing: str = ""
    derived: Mapping[str, Any] | None = None
    generated: bool = False
    script: str = ""
    embedded: str = ""

    def __post_init__(self) -> None:
        origins = bool(self.urls) + bool(self.derived) + self.generated
        if origins != 1:
            raise UserError(f"data set {self.name!r}: give exactly one of urls, derived and generated")
        if Path(self.file).is_absolute() or ".." in Path(self.file).parts:
            raise UserError(f"data set {self.name!r}: the file {self.file!r} must be a relative path without '..'")

    @property
    def size_text(self) -> str:
        return f"{self.size / 1e6:.2f} MB" if self.size else "?"

    @property
    def fetchable(self) -> bool:
        """Whether `fetch` can get it: it has a URL, comes from a set that has, or lies in a package."""
        return bool(self.urls or self.derived or self.embedded)

    @property
    def origin_text(self) -> str:
        if self.generated and not self.embedded:
            return f"absent; made by {self.script}"
        return "absent; `sciflow data fetch`" + (f", from {self.derived['from']}" if self.derived else "")


@dataclass(frozen=True)
class Verification:
    """Outcome of `verify`: status "ok", "wrong", "unpinned" (no checksum is known) or "absent"."""

    name: str
    status: str
    path: Path | None = None
    sha256: str = ""


@cache
def entries() -> Mapping[str, Entry]:
    """All data sets of the registry by name.

    >>> entries()["uproot_hzz"].licence
    'BSD-3-Clause'
    """
    table = tomllib.loads(resources.files("sciflow").joinpath("registry.toml").read_text("utf-8"))
    return {name: Entry(name, **{**fields, "urls": tuple(fields.get("urls", ()))}) for name, fields in table.items()}


def entry(name: str) -> Entry:
    """The data set of that name; `UserError` naming the known ones if there is none."""
    known = entries()
    if name not in known:
        raise UserError(f"there is no data set {name!r}; known: {', '.join(sorted(known))}")
    return known[name]


def cache_folder() -> Path:
    """Where `fetch` keeps downloads: the operating system's cache folder for this user."""
    import pooch

    return Path(pooch.os_cache("sciflow"))


def find(name: str, *, folder: str | Path | None = None) -> Path | None:
    """The file of a set, or None: below `folder` if that is given, else below $SCIFLOW_DATA, else in the cache."""
    file = entry(name).file
    for place in _places(folder):
        if (place / file).is_file():
            return place / file
    return None


def path(name: str, *, check: bool = False) -> Path:
    """The file of a set that is already here (never downloads). With `check` its checksum is compared.

    Raises `UserError` that says how to get the set, or that its checksum is wrong.
    """
    wanted = entry(name)
    found = find(name)
    if found is None:
        how = f"run `sciflow data fetch {name}`" if wanted.fetchable else f"it is made by {wanted.script}"
        raise UserError(
            f"{wanted.file} is neither below SCIFLOW_DATA={os.environ.get('SCIFLOW_DATA', '')!r} nor in the cache: {how}"
        )
    if check:
        _check(wanted, found)
    return found


def verify(name: str, *, folder: str | Path | None = None) -> Verification:
    """Compare the file at hand with its checksum."""
    found = find(name, folder=folder)
    if found is None:
        return Verification(name, "absent")
    sha256, wanted = _sha256(found), entry(name).sha256
    return Verification(name, "unpinned" if not wanted else "ok" if sha256 == wanted else "wrong", found, sha256)


def fetch(name: str, *, folder: str | Path | None = None, progress: bool = True) -> Path:
    """The checked file of a set, downloaded if it is not here yet.

    An existing file (below $SCIFLOW_DATA, in the cache, or below `folder` if that is given) is checked and returned;
    a wrong one below $SCIFLOW_DATA is an error, a wrong one in the cache is replaced. Downloads appear under their
    name only when they are complete and their checksum is right. Sets without a known checksum are logged as unpinned.

    Raises `UserError` if a source cannot be reached or serves other bytes, and for generated sets that are absent.
    """
    wanted = entry(name)
    target_folder = cache_folder() if folder is None else Path(folder)
    found = find(name, folder=folder)
    if found is not None:
        wrong = wanted.sha256 and _sha256(found) != wanted.sha256
        if not wrong:
            return found
        if not found.is_relative_to(target_folder):
            _check(wanted, found)
        _log.warning("%s has a wrong checksum and is replaced", found)
        found.unlink()
    target = target_folder / wanted.file
    _log.info("%s: licence %s; cite: %s", name, wanted.licence, wanted.citation)
    if wanted.embedded:
        package, _, inside = wanted.embedded.partition(":")
        content = gzip.decompress(resources.files(package).joinpath(inside).read_bytes())
        return _write(wanted, content, target, f"the file inside the package {package}")
    if wanted.generated:
        raise UserError(f"{name} is generated for this project and has no URL: {wanted.script} makes {wanted.file}")
    if wanted.derived:
        return _derive(wanted, fetch(wanted.derived["from"], folder=folder, progress=progress), target)
    from sciflow._download import download

    download(wanted.urls, target, wanted.sha256, progress=progress)
    if not wanted.sha256:
        _log.warning("%s is unpinned: no official checksum is known; this file has sha256 %s", name, _sha256(target))
    return target


def _places(folder: str | Path | None) -> list[Path]:
    if folder is not None:
        return [Path(folder)]
    shared = os.environ.get("SCIFLOW_DATA")
    return [*([Path(shared)] if shared else []), cache_folder()]


def _derive(wanted: Entry, source: Path, target: Path) -> Path:
    """The rows of a comma-separated file whose integer column is below a bound."""
    rule = wanted.derived or {}
    lines = source.read_bytes().splitlines(keepends=True)
    names = lines[0].decode().strip().split(",") if lines else []
    if rule["column"] not in names:
        raise UserError(f"{source}: column {rule['column']!r} is missing; it has: {', '.join(names)}")
    column = names.index(rule["column"])
    kept = [line for line in lines[1:] if int(line.split(b",")[column]) < rule["below"]]
    origin = f"the {len(kept)} rows of {source} with {rule['column']} < {rule['below']}"
    return _write(wanted, b"".join([lines[0], *kept]), target, origin)


def _write(wanted: Entry, content: bytes, target: Path, origin: str) -> Path:
    sha256 = hashlib.sha256(content).hexdigest()
    if wanted.sha256 and sha256 != wanted.sha256:
        raise UserError(f"{wanted.name}: {origin} has sha256 {sha256}, expected {wanted.sha256}: its source has changed")
    target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(target) as beside:
        beside.write_bytes(content)
    return target


def _check(wanted: Entry, found: Path) -> None:
    if wanted.sha256 and (sha256 := _sha256(found)) != wanted.sha256:
        raise UserError(
            f"{found} has sha256 {sha256}, expected {wanted.sha256}: remove it and run `sciflow data fetch {wanted.name}`"
        )


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
