"""The Zarr store of many observations: chunks are written, flushed, and then marked as done."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import alive, flush, reason, remove, replace_folder, replacing
from sciflow.posterior.many.drawing import Drawn
from sciflow.posterior.many.layout import TEXTS, Shapes, create, difference, shapes_of, value_of
from sciflow.store.files import consolidate, record_certificate
from sciflow.store.streaming import is_draws
from sciflow.strict_json import dumps, loads

__all__ = ["ManyStore"]


class ManyStore:
    """Chunks of observations on their way to `path`.

    Until all are there, `<path>.partial` holds the `store`, and `progress`: run.json names the request, chunk-000007.json says
    that chunk 7 is on disk, whatever happens afterwards.

    Raises `UserError` if `path` is something else or holds other draws, if another process writes there, or if what is there
    was asked for with other arguments.
    """

    def __init__(self, path: str | Path, request: dict[str, Any], chunk: int, *, resume: bool) -> None:
        self.path = Path(path).resolve()
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.store, self.progress = self.partial / "store", self.partial / "progress"
        self.request, self.chunk, self.observations = request, chunk, int(request["observations"])
        self.shapes: Shapes = {}
        self.group: zarr.Group | None = None
        if self.path.suffix in (".nc", ".h5", ".hdf5"):
            raise UserError(f"{self.path}: many observations go to a Zarr folder: give a path like draws.zarr")
        if self.path.exists() and not is_draws(self.path):
            raise UserError(f"{self.path} exists and holds no draws: it is not overwritten, give another path")
        if self.partial.exists() and not (self.progress.is_dir() or is_draws(self.partial)):
            raise UserError(f"{self.partial} exists and holds no draws: remove it or give another path")
        self.finished = resume and self._finished()
        if not self.finished:
            self._enter(resume)

    def done(self) -> set[int]:
        """Numbers of the chunks that are on disk."""
        if self.group is None:
            return set()
        if self.finished:
            return set(range(math.ceil(self.observations / self.chunk)))
        return {int(entry.stem.removeprefix("chunk-")) for entry in self.progress.glob("chunk-*.json")}

    def lay_out(self, kind: str, first: Drawn, observed: Mapping[str, Any] | None) -> None:
        """Make the arrays as this observation has them."""
        try:
            self.group = create(self.store, self.observations, self.chunk, kind, first, request=self.request, observed=observed)
        except OSError as error:
            raise UserError(f"{self.store}: the draws cannot be written: {reason(error)}") from error
        self.shapes = shapes_of(self.group)

    def write(self, number: int, drawn: Sequence[Drawn]) -> None:
        """One chunk; it counts once its marker is there. Draws of another shape than those of others become failures."""
        kept = []
        for entry in drawn:
            different = "" if entry.failure else difference(self.shapes, entry)
            kept.append(Drawn(entry.number, {}, {}, {}, None, None, 0.0, failure=different) if different else entry)
        try:
            self._write(number, kept)
        except OSError as error:
            raise UserError(
                f"{self.partial}: chunk {number} cannot be written: {reason(error)}; what was finished is kept"
            ) from error

    def records(self) -> dict[str, np.ndarray]:
        """Texts and counts of all observations."""
        assert self.group is not None
        return {name: np.asarray(self.group[f"sample_stats/{name}"][:]) for name in (*TEXTS, "not_finite")}  # type: ignore[index]

    def finish(self, certificate: Certificate) -> Path:
        """Put the store in its place, with its certificate."""
        assert self.group is not None
        record_certificate(self.store, certificate)
        consolidate(self.store)
        replace_folder(self.store, self.path)
        remove(self.partial)
        return self.path

    def abandon(self) -> None:
        """After a failure: what a later call can use is kept, a folder without draws is not."""
        if not self.done():
            remove(self.partial)

    def _write(self, number: int, drawn: Sequence[Drawn]) -> None:
        assert self.group is not None
        rows = slice(drawn[0].number, drawn[0].number + len(drawn))
        for place, array in self.group.members(max_depth=None):
            if not isinstance(array, zarr.Array) or place.startswith("observed_data/") or place.endswith("/observation"):
                continue
            if (array.metadata.dimension_names or ("",))[0] != "observation":  # type: ignore[union-attr]
                continue
            array[rows] = np.stack([np.asarray(value_of(place, array, entry), dtype=array.dtype) for entry in drawn])
            flush(self.store / place / "c" / str(number))
        with replacing(self.progress / f"chunk-{number:06d}.json") as beside:
            failed = {str(entry.number): entry.failure for entry in drawn if entry.failure}
            beside.write_text(dumps({"failed": failed}), encoding="utf-8")

    def _enter(self, resume: bool) -> None:
        state = self._state()
        if state and state["host"] == socket.gethostname() and state["pid"] != os.getpid() and alive(int(state["pid"])):
            raise UserError(f"{self.partial}: process {state['pid']} is writing to it: wait for it or give another path")
        if state and resume:
            if different := self._differing(state["request"]):
                raise UserError(f"{self.partial}: cannot resume: {different}; give the same arguments, or resume=False")
            self.chunk = int(state["chunk"])
            self._open()
        elif resume and (self.path / "zarr.json").is_file():
            raise UserError(f"{self.path} holds other draws ({self._before()}): give another path, or resume=False")
        else:
            remove(self.partial)
        try:
            self.progress.mkdir(parents=True, exist_ok=True)
            with replacing(self.progress / "run.json") as beside:
                now = {"request": self.request, "chunk": self.chunk, "pid": os.getpid(), "host": socket.gethostname()}
                beside.write_text(dumps(now), encoding="utf-8")
        except OSError as error:
            raise UserError(f"{self.partial}: draws cannot be written there: {reason(error)}") from error

    def _open(self) -> None:
        try:
            self.group = zarr.open_group(self.store, mode="r+", use_consolidated=False)
            self.shapes = shapes_of(self.group)
        except (KeyError, OSError, ValueError):  # it died while it was laid out: no chunk was there yet
            self.group = None
            remove(self.store)
            for marker in self.progress.glob("chunk-*.json"):
                marker.unlink()

    def _finished(self) -> bool:
        if not (self.path / "zarr.json").is_file() or self._before():
            return False
        remove(self.partial)  # of a process that died after the last rename
        self.group = zarr.open_group(self.path, mode="r", use_consolidated=False)
        self.shapes = shapes_of(self.group)
        return True

    def _before(self) -> str:
        text = zarr.open_group(self.path, mode="r", use_consolidated=False).attrs.get("request")
        return self._differing(loads(str(text))) if text else "not those of many observations"

    def _state(self) -> dict[str, Any] | None:
        try:
            return loads((self.progress / "run.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None

    def _differing(self, before: Mapping[str, Any]) -> str:
        for name, value in self.request.items():
            if before.get(name) != value:
                return f"{name} was {_short(before.get(name))} and is {_short(value)} now"
        return ""


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) < 100 else f"{text[:97]}..."
