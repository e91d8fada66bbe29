"""HDF5 through h5py: a group of one-dimensional data sets, or one compound data set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Columns, Source, broken, strings

__all__ = ["Hdf5Source"]


class Hdf5Source(Source):
    """The columns are the one-dimensional data sets of a group (`tree`, by default the only one that has any), or the fields
    of a compound data set."""

    def __init__(self, path: Path, tree: str | None) -> None:
        import h5py

        self.path = path
        try:
            self.file = h5py.File(path, "r")
            found = _tables(self.file)
        except (OSError, RuntimeError, KeyError) as error:
            raise broken(path, "HDF5", error) from error
        listing = ", ".join(name or "/" for name in found) or "none"
        wanted = None if tree is None else tree.strip("/")
        if wanted is None and len(found) != 1:
            raise UserError(f"{path}: which table? name one with tree = ...; the file has {listing}")
        if wanted is not None and wanted not in found:
            raise UserError(f"{path}: no group or table {tree!r}; the file has {listing}")
        self.tree = next(iter(found)) if wanted is None else wanted
        self.node: Any = self.file[self.tree or "/"]
        self.compound = isinstance(self.node, h5py.Dataset)
        self.names = found[self.tree]
        self.label = f"{path}:{self.tree}" if self.tree else str(path)
        lengths = {len(self.node)} if self.compound else {len(self.node[name]) for name in self.names}
        if len(lengths) > 1:
            sizes = ", ".join(f"{name} {len(self.node[name])}" for name in self.names)
            raise UserError(f"{self.label}: the columns differ in length: {sizes[:200]}")
        self.entries = lengths.pop()
        self._check()

    def chunks(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns]]:
        for first in range(start, stop, step):
            part = slice(first, min(first + step, stop))
            try:
                if self.compound:
                    block = self.node[part]
                    yield first, {name: _column(block[name]) for name in names}
                else:
                    yield first, {name: _column(self.node[name][part]) for name in names}
            except (OSError, RuntimeError) as error:
                raise broken(self.path, "HDF5", error) from error

    def close(self) -> None:
        self.file.close()


def _column(values: Any) -> Any:
    return strings(values.tolist()) if values.dtype.kind in "OS" else values


def _tables(file: Any) -> dict[str, list[str]]:
    import h5py

    found: dict[str, list[str]] = {}

    def visit(name: str, node: Any) -> None:
        if isinstance(node, h5py.Dataset):
            if node.ndim == 1 and node.dtype.names:
                found[name] = list(node.dtype.names)
            return
        columns = [
            key for key in node if isinstance(node[key], h5py.Dataset) and node[key].ndim == 1 and not node[key].dtype.names
        ]
        if columns:
            found[name] = columns

    visit("", file)
    file.visititems(visit)
    return found
