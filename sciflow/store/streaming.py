"""Draws streamed to Zarr: complete chunks are kept, an interrupted store can be continued."""

from __future__ import annotations

import os
import socket
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import alive, flush, remove, replace_folder, replacing
from sciflow.store.files import GROUPS, certificate_of, consolidate, read_draws, record_certificate
from sciflow.store.tree import Layout
from sciflow.strict_json import dumps, loads

__all__ = ["ZarrStream", "is_draws"]

_PROGRESS = "progress.json"


class ZarrStream:
    """Writes chunks of draws to `<path>.partial` and renames it on completion.

    `progress.json` in it names the request, the chunk size and the number of complete draws; it is written after the
    data of a chunk are on disk, so that a killed process loses at most the chunk it was working on.
    """

    def __init__(self, path: str | Path, *, resume: bool) -> None:
        self.path, self.resume = Path(path).resolve(), resume
        self.partial = self.path.with_name(f"{self.path.name}.partial")
        self.done, self.chunk, self.owned = 0, 0, False
        self.places: dict[str, Any] = {}
        if self.path.suffix in (".nc", ".h5", ".hdf5"):
            raise UserError(f"{self.path}: draws stream to a Zarr folder; give a path like draws.zarr, then use to_netcdf")
        if self.path.exists() and not is_draws(self.path):
            raise UserError(f"{self.path} exists and holds no draws: it is not overwritten, give another path")
        if strange := _strange(self.path):
            raise UserError(f"{self.path} holds {strange!r}, which would be lost: move it away or give another path")

    def open(self, layout: Layout, dtypes: dict[str, np.dtype], request: dict[str, Any], chunk: int) -> None:
        """Start, or continue at `done` with the chunk size in `chunk`."""
        state = self._state()
        if state and state["host"] == socket.gethostname() and state["pid"] != os.getpid() and alive(state["pid"]):
            raise UserError(f"{self.partial}: process {state['pid']} is writing to it: wait for it or give another path")
        if state and self.resume:
            different = sorted(key for key in request if state["request"].get(key) != request[key])
            if different:
                raise UserError(
                    f"{self.partial}: cannot resume: {different[0]} was {state['request'].get(different[0])!r} and is "
                    f"{request[different[0]]!r} now; use resume=False to start again"
                )
            self.done, self.chunk, self.request = state["done"], state["chunk"], request
            self._record()
        else:
            self.chunk, self.request = chunk, request
            self._create(layout, dtypes)
        opened = zarr.open_group(self.partial, mode="r+", use_consolidated=False)
        self.places = {name: opened[f"{group}/{name}"] for name, (group, *_) in layout.arrays.items()}

    def certify(self, certificate: str | None) -> None:
        """Store a certificate with draws that are there already."""
        folder = self.path if self.path.exists() and not self.places else self.partial
        if certificate is None:
            return
        if folder == self.path:
            record_certificate(folder, Certificate.from_json(certificate))
            consolidate(folder)
        else:
            zarr.open_group(folder, mode="r+", use_consolidated=False).attrs["certificate"] = certificate

    def is_complete(self, request: dict[str, Any], first: np.ndarray) -> bool:
        """Whether `path` already holds what is asked for."""
        if not self.path.exists() or not any(self.path.iterdir()):
            return False
        tree = read_draws(self.path)
        same = all(tree.attrs.get(key) == value for key, value in request.items() if key in tree.attrs)
        x: Any = tree["posterior"]["x"]
        shape = (1, request["n"], *request["batch_shape"], *request["event_shape"])
        same = same and ("log_prob" in tree["sample_stats"]) == request["density"]
        return same and x.shape == shape and _agree(x[:, :1].values, first)

    def compare(self, first: np.ndarray) -> None:
        """Refuse to continue draws of another distribution: its first draw differs from the stored one."""
        if not _agree(np.asarray(self.places["x"][:, :1]), first):
            raise UserError(
                f"{self.partial}: cannot resume: its first draw is not what this distribution gives (another condition?); "
                "use resume=False to start again"
            )

    def write(self, values: dict[str, np.ndarray]) -> None:
        """Append draws (1, n, ...), n being the chunk size except at the end."""
        first, last = self.done, self.done + values["x"].shape[1]
        for name, array in self.places.items():
            array[:, first:last] = values[name]
            flush(self.partial / array.path / "c" / "0" / str(first // self.chunk))
        self.done = last
        self._record()

    def finish(self) -> Path:
        """Put the complete store in its place."""
        for leftover in self.partial.glob(f"{_PROGRESS}*"):  # a process that was killed may have left a temporary one
            leftover.unlink()
        certificate = certificate_of(read_draws(self.partial))
        if certificate is not None:
            record_certificate(self.partial, certificate)
        consolidate(self.partial)
        replace_folder(self.partial, self.path)
        return self.path

    def abandon(self) -> None:
        """After a failure: nothing is left, except what a later `resume=True` can use if it was asked for."""
        if self.owned and not self.resume:
            remove(self.partial)

    def _create(self, layout: Layout, dtypes: dict[str, np.dtype]) -> None:
        self.owned = True
        remove(self.partial)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr 3 has no specification of numpy's fixed-width strings yet
            layout.tree({}).to_zarr(self.partial, mode="w", zarr_format=3, consolidated=False)
        group = zarr.open_group(self.partial, mode="r+", use_consolidated=False)
        for name, (folder, dims, shape, attributes) in layout.arrays.items():
            group[folder].create_array(  # type: ignore[union-attr]
                name,
                shape=shape,
                chunks=(1, min(self.chunk, layout.draws), *shape[2:]),
                dtype=dtypes[name],
                dimension_names=dims,
                attributes=attributes,
            )
        self._record()

    def _record(self) -> None:
        state = {"request": self.request, "chunk": self.chunk, "done": self.done}
        with replacing(self.partial / _PROGRESS) as beside:
            beside.write_text(dumps({**state, "pid": os.getpid(), "host": socket.gethostname()}))

    def _state(self) -> dict[str, Any] | None:
        try:
            return loads((self.partial / _PROGRESS).read_text())
        except (OSError, ValueError):
            if self.partial.exists() and not is_draws(self.partial) and _strange(self.partial):
                raise UserError(f"{self.partial} exists and holds no draws: remove it or give another path") from None
            return None


def _agree(stored: np.ndarray, now: np.ndarray) -> bool:
    """Whether draws are the same but for rounding, which may depend on the chunk size."""
    if stored.dtype != now.dtype or stored.shape != now.shape:
        return False
    scale = np.abs(now) + np.median(np.abs(now)) if now.size else 0.0
    return bool(np.all((np.abs(stored - now) <= 1e-3 * scale) | (stored == now) | (np.isnan(stored) & np.isnan(now))))


def is_draws(path: Path) -> bool:
    """Whether a folder is empty or a Zarr store with draws: only such a one is ever replaced."""
    if not path.is_dir():
        return False
    return any((path / group / "zarr.json").is_file() for group in GROUPS) or not any(path.iterdir())


def _strange(path: Path) -> str | None:
    """Something in a folder of draws that no store has written."""
    entries = sorted(path.iterdir()) if path.is_dir() else []
    known = [entry for entry in entries if entry.name == "zarr.json" or entry.name.startswith(_PROGRESS)]
    return next((entry.name for entry in entries if entry not in known and not (entry / "zarr.json").is_file()), None)
