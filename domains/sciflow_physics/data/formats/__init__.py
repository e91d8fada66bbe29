"""File formats of tabular collision data: ROOT, parquet, HDF5, CSV."""

from __future__ import annotations

from pathlib import Path

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Columns, Source, is_jagged

__all__ = ["Columns", "Source", "is_jagged", "kind_of", "open_source"]

KINDS = {
    ".root": "root",
    ".parquet": "parquet",
    ".parq": "parquet",
    ".pq": "parquet",
    ".h5": "hdf5",
    ".hdf5": "hdf5",
    ".hdf": "hdf5",
    ".csv": "csv",
    ".txt": "csv",
}


def kind_of(path: str | Path) -> str:
    """ "root", "parquet", "hdf5" or "csv", by the name's ending.

    >>> kind_of("ntuple.root")
    'root'
    """
    suffix = Path(path).suffix.lower()
    if suffix not in KINDS:
        raise UserError(f"{path}: unknown ending {suffix!r}; known are {', '.join(KINDS)}")
    return KINDS[suffix]


def open_source(path: str | Path, tree: str | None = None) -> Source:
    """Open a file for reading; `tree` names the TTree of a ROOT file or the group of an HDF5 file."""
    path = Path(path)
    kind = kind_of(path)
    if not path.exists():
        raise UserError(f"{path}: no such file")
    if path.is_dir():
        raise UserError(f"{path}: is a folder, a {kind} file is needed")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: is empty (0 bytes)")
    if tree is not None and kind in ("csv", "parquet"):
        raise UserError(f"{path}: a {kind} file has no trees; leave out tree = {tree!r}")
    if kind == "root":
        from sciflow_physics.data.formats.root import RootSource

        return RootSource(path, tree)
    if kind == "hdf5":
        from sciflow_physics.data.formats.hdf5 import Hdf5Source

        return Hdf5Source(path, tree)
    if kind == "parquet":
        from sciflow_physics.data.formats.parquet import ParquetSource

        return ParquetSource(path)
    from sciflow_physics.data.formats.csv import CsvSource

    return CsvSource(path)
