"""Formats of raw scans: one module each, chosen by ending and content."""

from __future__ import annotations

from pathlib import Path

from sciflow.errors import UserError
from sciflow_mri.data.formats import bart

__all__ = ["FORMATS", "kind_of"]

FORMATS = {
    "fastmri": "fastMRI HDF5 (.h5 with a dataset 'kspace')",
    "mrd": "ISMRMRD/MRD HDF5 (.h5 or .mrd with acquisitions)",
    "bart": "BART (.cfl and .hdr)",
    "numpy": "NumPy (.npy, .npz)",
}
_HDF5 = b"\x89HDF\r\n\x1a\n"


def kind_of(path: Path) -> str:
    """The key of `FORMATS` for a file, by its ending and first bytes; `UserError` if none fits."""
    if path.suffix in (".cfl", ".hdr"):
        return "bart"
    if not path.exists() and all(file.is_file() for file in bart.sources(path)):
        return "bart"
    if not path.exists():
        raise UserError(f"{path}: no such file")
    known = "; ".join(FORMATS.values())
    if path.is_dir():
        raise UserError(f"{path}: a folder; a raw scan is one file: {known} (DICOM folders of images are read by read_volume)")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    with open(path, "rb") as file:
        first = file.read(8)
    if path.suffix in (".npy", ".npz") or first.startswith(b"\x93NUMPY"):
        return "numpy"
    if first == _HDF5 or path.suffix in (".h5", ".hdf5", ".mrd"):
        return _kind_of_hdf5(path)
    if path.name.endswith((".nii", ".nii.gz", ".dcm", ".img")):
        raise UserError(f"{path}: an image, not a raw scan; images are read by read_volume and serve for training")
    raise UserError(f"{path}: unknown format {path.suffix!r}; readable are {known}")


def _kind_of_hdf5(path: Path) -> str:
    from sciflow_mri.data.formats.hdf5 import opened

    with opened(path) as file:
        if "kspace" in file:
            return "fastmri"
        if any(getattr(file[name], "keys", None) and {"data", "xml"} & set(file[name].keys()) for name in file):
            return "mrd"
        raise UserError(
            f"{path}: HDF5 without a dataset 'kspace' (fastMRI) or a group with 'data' and 'xml' (ISMRMRD); "
            f"it has: {', '.join(map(str, file)) or 'nothing'}"
        )
