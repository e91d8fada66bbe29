"""Magnitude volumes for training, from NIfTI files and DICOM folders, and their writer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow_mri.data.identity import sha256_of

__all__ = ["make_volume", "read_volume", "write_volume"]


def read_volume(
    path: str | Path, *, volume: int | None = None, series: str | None = None, clip: bool = False, canonical: bool = True
) -> xr.DataArray:
    """A magnitude volume (z, y, x), float32 and not negative, with its place in the scanner.

    Arguments:
        path: a NIfTI file (`.nii`, `.nii.gz`) or a folder of DICOM files of one series.
        volume: which one of a NIfTI file with several.
        series: the SeriesInstanceUID to take from a folder with several.
        clip: set negative values, which interpolation leaves behind, to 0; otherwise they are refused.
        canonical: turn the axes (without interpolation) so that x points to the right, y forward and z up.

    Attributes: `affine` (4x4 flattened, voxel (x, y, z) -> mm, NIfTI convention), `voxel_size_mm` [z, y, x], `source`,
    `source_sha256` (of a folder: of the sorted list of its files' hashes) and `format`. Complex images become magnitudes.

    Raises `UserError` for files that cannot be read, NaN, negative values, and volumes that are zero everywhere.
    """
    path = Path(path)
    if path.is_dir():
        from sciflow_mri.data.dicom import read_dicom

        values, affine, attrs = read_dicom(path, series)
    else:
        values, affine, attrs = _read_nifti(path, volume)
    return make_volume(values, affine, attrs, clip=clip, canonical=canonical)


def make_volume(
    values: NDArray, affine: NDArray[np.float64], attrs: dict[str, Any], *, clip: bool = False, canonical: bool = False
) -> xr.DataArray:
    """A checked volume from `values` in the order (x, y, z) of its `affine`."""
    label = attrs.get("source", "volume")
    if values.ndim != 3 or not values.size:
        raise UserError(f"{label}: an image of shape {values.shape}; three axes (x, y, z), none of them empty, are needed")
    if np.iscomplexobj(values):
        values = np.abs(values)
    if not np.isfinite(values).all():
        bad = ~np.isfinite(values)
        at = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        raise UserError(f"{label}: {int(bad.sum())} NaN or infinite voxels, the first at (x, y, z) = ({at})")
    if values.min() < 0:
        if not clip:
            raise UserError(
                f"{label}: {int((values < 0).sum())} negative voxels, the lowest {values.min():g}; a magnitude has none: "
                "clip=True sets them to 0"
            )
        values = np.maximum(values, 0)
    if not values.any():
        raise UserError(f"{label}: the volume is zero everywhere")
    if canonical:
        turn = nibabel.orientations.io_orientation(affine)
        if np.isnan(turn).any():
            raise UserError(
                f"{label}: its affine has a zero column, the directions of the axes are unknown; pass canonical=False"
            )
        affine = affine @ nibabel.orientations.inv_ornt_aff(turn, values.shape)
        values = nibabel.orientations.apply_orientation(values, turn)
    size = [float(number) for number in np.linalg.norm(affine[:3, :3], axis=0)[::-1]]
    known = {"affine": [float(number) for number in affine.ravel()], "voxel_size_mm": size, **attrs}
    return xr.DataArray(np.ascontiguousarray(values.T, np.float32), dims=("z", "y", "x"), name="magnitude", attrs=known)


def write_volume(path: str | Path, volume: xr.DataArray) -> None:
    """Write an image (z, y, x), or a scan's (slice, y, x), as NIfTI with the affine (or the voxel size) of its attributes."""
    path = Path(path)
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: the name of a NIfTI file ends in .nii or .nii.gz")
    if volume.ndim != 3:
        raise UserError(f"{path}: the image has dimensions {volume.dims}, three (slice, y, x) are needed")
    if "affine" in volume.attrs:
        affine = np.array(volume.attrs["affine"], np.float64).reshape(4, 4)
    else:
        affine = np.diag([*list(volume.attrs.get("voxel_size_mm", (1.0, 1.0, 1.0)))[::-1], 1.0])
    image = nibabel.Nifti1Image(np.asarray(volume.values).T, affine)
    image.header.set_xyzt_units("mm")
    suffix = ".nii.gz" if path.name.endswith(".gz") else ".nii"
    with replacing(path) as beside:
        # nibabel chooses compression by the ending, which the temporary name does not have
        named = beside.with_name(beside.name + suffix)
        try:
            nibabel.save(image, named)
            named.replace(beside)
        finally:
            named.unlink(missing_ok=True)


def _read_nifti(path: Path, volume: int | None) -> tuple[NDArray, NDArray[np.float64], dict[str, Any]]:
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    if path.stat().st_size == 0:
        raise UserError(f"{path}: the file is empty (0 bytes)")
    if not path.name.endswith((".nii", ".nii.gz")):
        raise UserError(f"{path}: unknown format {path.suffix!r}; a volume is a NIfTI file (.nii, .nii.gz) or a DICOM folder")
    try:
        image: Any = nibabel.load(path)
        values = np.asanyarray(image.dataobj)
    except Exception as error:  # nibabel, gzip and zlib each raise their own
        text = " ".join(str(error).split())
        raise UserError(f"{path.name}: cannot be read as NIfTI, the file is damaged or truncated ({text})") from None
    if values.dtype.names:
        raise UserError(f"{path.name}: a colour image ({values.dtype}); a magnitude volume is needed")
    while values.ndim > 3 and values.shape[-1] == 1:
        values = values[..., 0]
    if values.ndim == 4:
        if volume is None or not 0 <= volume < values.shape[3]:
            asked = "" if volume is None else f", volume={volume} is none of them"
            raise UserError(
                f"{path.name}: {values.shape[3]} volumes in one file{asked}; choose volume=0 to volume={values.shape[3] - 1}"
            )
        values = values[..., volume]
    if values.ndim == 2:
        values = values[..., None]
    return (
        values,
        np.asarray(image.affine, np.float64),
        {"source": path.name, "source_sha256": sha256_of(path), "format": "nifti"},
    )
