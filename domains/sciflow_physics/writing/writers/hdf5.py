"""HDF5 output: growing one-dimensional data sets in one group, or a growing compound data set."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Any

import numpy as np

from sciflow_physics.data.formats.base import Carrier, Columns
from sciflow_physics.writing.writers.base import Sink

__all__ = ["Hdf5Sink"]


class _Guarded(io.FileIO):
    """A file that keeps its first error for later: HDF5 crashes the process if a write fails while it closes a file."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        left = memoryview(data).cast("B")
        size = len(left)
        try:
            while self.error is None and len(left):
                left = left[super().write(left) or 0 :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return self.tell() if size is None else size

    def check(self) -> None:
        if self.error is not None:
            raise self.error


class Hdf5Sink(Sink):
    """Columns below the group `tree` ("" is the root group); provenance is its attribute `sciflow`."""

    def __init__(self, path: Path, output: Path, provenance: str, *, tree: str = "", compound: bool = False) -> None:
        import h5py

        super().__init__(path, output, provenance)
        self.raw = _Guarded(path, "w+")
        self.file = h5py.File(self.raw, "w")
        self.tree, self.compound, self.rows = tree or ("events" if compound else "/"), compound, 0
        self.node: Any = None

    def write(self, original: Carrier | None, new: Columns) -> None:
        columns = {**(original.columns() if original else {}), **new}
        self._flat(columns, "HDF5")
        columns = {name: _storable(column) for name, column in columns.items()}
        rows = len(next(iter(columns.values())))
        if self.node is None:
            self.node = self._create(columns, max(min(rows, 65536), 1))
            self.node.attrs["sciflow"] = self.provenance
        if self.compound:
            block: Any = np.empty(rows, self.node.dtype)
            for name, column in columns.items():
                block[name] = column
            self._append(self.node, block)
        else:
            for name, column in columns.items():
                self._append(self.node[name], column)
        self.rows += rows
        self.raw.check()

    def finish(self) -> None:
        self.file.close()
        self.raw.check()
        self.raw.close()

    def abort(self) -> None:
        with contextlib.suppress(OSError, RuntimeError):
            self.file.close()
        self.raw.close()

    def _create(self, columns: Columns, chunk: int) -> Any:
        if self.compound:
            kind = np.dtype([(name, _kind(column)) for name, column in columns.items()])
            return self.file.create_dataset(self.tree, (0,), kind, maxshape=(None,), chunks=(chunk,))
        group = self.file.require_group(self.tree)
        for name, column in columns.items():
            group.create_dataset(name, (0,), _kind(column), maxshape=(None,), chunks=(chunk,))
        return group

    def _append(self, dataset: Any, values: Any) -> None:
        dataset.resize((self.rows + len(values),))
        dataset[self.rows :] = values


def _storable(column: Any) -> Any:
    return np.array(column.tolist(), dtype=object) if column.dtype.kind == "U" else column


def _kind(column: Any) -> Any:
    import h5py

    return h5py.string_dtype() if column.dtype.kind == "O" else column.dtype
