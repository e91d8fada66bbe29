"""Images of results as NIfTI, in the place of the scan."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import reason, replacing

__all__ = ["placement", "write_nifti"]


def placement(attrs: Mapping[Any, Any]) -> tuple[NDArray[np.float64], str]:
    """The affine voxel (x, y, slice) -> mm, and what is to be said of it in the 79 characters of the header's description.

    Without an affine voxels have their size but no orientation; without a size one voxel stands for 1 mm.

    >>> placement({"voxel_size_mm": [5.0, 1.0, 2.0]})
    (array([[2., 0., 0., 0.],
           [0., 1., 0., 0.],
           [0., 0., 5., 0.],
           [0., 0., 0., 1.]]), 'orientation and origin unknown')
    """
    if "affine" in attrs:
        return np.asarray(attrs["affine"], np.float64).reshape(4, 4), ""
    if "voxel_size_mm" in attrs:
        return np.diag([*np.asarray(attrs["voxel_size_mm"], np.float64)[::-1], 1.0]), "orientation and origin unknown"
    return np.eye(4), "voxel size and orientation unknown: 1 voxel = 1 mm"


def write_nifti(path: str | Path, image: NDArray[np.floating], attrs: Mapping[Any, Any], what: str) -> Path:
    """Write an image (y, x) or (slice, y, x) as `.nii.gz`, float32; `what` and what is unknown go into the description.

    Raises `UserError` if it cannot be written.
    """
    path = Path(path)
    affine, unknown = placement(attrs)
    values = np.asarray(image, np.float32)
    values = values[None] if values.ndim == 2 else values
    made: Any = nibabel.Nifti1Image(np.ascontiguousarray(values.T), affine)
    made.header.set_xyzt_units("mm")
    made.header["descrip"] = "; ".join(text for text in (what, unknown) if text).encode()[:79]
    known = 1 if "affine" in attrs else 0  # 0: unknown, 1: scanner coordinates
    made.set_sform(affine, code=known)
    made.set_qform(affine, code=known)
    try:
        with replacing(path) as beside:
            # without name and time in its header the same image gives the same bytes
            beside.write_bytes(gzip.compress(made.to_bytes(), mtime=0))
    except OSError as error:
        raise UserError(f"{path}: the image cannot be written: {reason(error)}") from error
    return path
