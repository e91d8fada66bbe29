"""A folder of DICOM files as one volume."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.geometry import turn_to_ras
from sciflow_mri.data.identity import sha256_of_many

__all__ = ["read_dicom"]

NEEDED = ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns")


def read_dicom(folder: Path, series: str | None = None) -> tuple[NDArray, NDArray[np.float64], dict[str, Any]]:
    """Voxels (x, y, z), affine (voxel -> mm, NIfTI convention) and attributes of the one image series in a folder.

    Slices are sorted along their normal and rescaled by slope and intercept. Raises `UserError` for no DICOM, several series
    and no `series` chosen, missing positions, slices that are missing or not parallel, and multi-frame or compressed files
    that pydicom cannot decode.
    """
    label = folder.name or str(folder)
    try:
        return _volume(folder, label, series)
    except UserError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, NotImplementedError) as error:
        # pydicom decodes a value when it is asked for, and complains then
        text = " ".join(str(error).split())
        raise UserError(f"{label}: a DICOM file holds a damaged value ({text}); copy the folder again") from None


def _volume(folder: Path, label: str, series: str | None) -> tuple[NDArray, NDArray[np.float64], dict[str, Any]]:
    found = _datasets(folder, label)
    names = sorted({str(one.get("SeriesInstanceUID", "")) for _, one in found})
    if series is not None and series not in names:
        raise UserError(f"{label}: no series {series}; the folder has {', '.join(names)}")
    if series is None and len(names) > 1:
        raise UserError(f"{label}: {len(names)} series in one folder; choose series= one of {', '.join(names)}")
    chosen = [(path, one) for path, one in found if str(one.get("SeriesInstanceUID", "")) == (series or names[0])]
    for path, one in chosen:
        if int(one.get("NumberOfFrames", 1) or 1) > 1:
            raise UserError(f"{label}/{path.name}: a multi-frame file; convert it to NIfTI (dcm2niix)")
        missing = [name for name in NEEDED if name not in one]
        if missing:
            raise UserError(f"{label}/{path.name}: {', '.join(missing)} missing; the slice cannot be placed")
    order, step = _stack([one for _, one in chosen], label)
    chosen = [chosen[index] for index in order]
    values = np.stack([_pixels(path, one, label).T for path, one in chosen], axis=-1)
    first = chosen[0][1]
    orientation = np.array(first.ImageOrientationPatient, np.float64)
    # PixelSpacing is (between rows, between columns); the first direction runs along a row, that is x
    between_rows, between_columns = (float(number) for number in first.PixelSpacing)
    affine = np.eye(4)
    columns = [orientation[:3] * between_columns, orientation[3:] * between_rows, step]
    affine[:3] = np.stack([*columns, np.array(first.ImagePositionPatient, np.float64)], axis=1)
    attrs = {"source": label, "source_sha256": sha256_of_many(path for path, _ in chosen), "format": "dicom"}
    return values, turn_to_ras(affine), attrs


def _datasets(folder: Path, label: str) -> list[tuple[Path, Any]]:
    found: list[tuple[Path, Any]] = []
    for path in sorted(entry for entry in folder.iterdir() if entry.is_file()):
        with open(path, "rb") as file:
            marked = file.read(132)[128:] == b"DICM"
        if not marked and path.suffix.lower() != ".dcm":
            continue
        try:
            one = pydicom.dcmread(path)
        except Exception as error:  # pydicom raises its own and whatever a damaged file provokes
            text = " ".join(str(error).split())
            raise UserError(
                f"{label}/{path.name}: cannot be read as DICOM, the file is damaged or truncated ({text})"
            ) from None
        if "PixelData" in one:
            found.append((path, one))
        elif "Rows" in one:
            raise UserError(f"{label}/{path.name}: an image without PixelData, the file is truncated")
    if not found:
        raise UserError(f"{label}: no DICOM image in this folder")
    return found


def _stack(slices: Sequence[Any], label: str) -> tuple[list[int], NDArray[np.float64]]:
    """The order of the slices along their normal and the step between neighbours, in mm and DICOM's axes."""
    first = slices[0]
    for name in ("Rows", "Columns", "PixelSpacing"):
        kinds = {str(one[name].value) for one in slices}
        if len(kinds) > 1:
            raise UserError(f"{label}: slices differ in {name} ({', '.join(sorted(kinds))}); one volume has one size")
    turned = np.array([one.ImageOrientationPatient for one in slices], np.float64)
    if not np.allclose(turned, turned[0], atol=1e-3):
        raise UserError(f"{label}: the slices are not parallel (localiser images among them?)")
    normal = np.cross(turned[0, :3], turned[0, 3:])
    position = np.array([one.ImagePositionPatient for one in slices], np.float64)
    order = np.argsort(position @ normal, kind="stable")
    steps = np.diff(position[order], axis=0)
    if not len(steps):
        return [0], normal * float(first.get("SpacingBetweenSlices", 0) or first.get("SliceThickness", 0) or 1.0)
    lengths = np.linalg.norm(steps, axis=1)
    if lengths.min() < 1e-3:
        raise UserError(f"{label}: several slices at one position (echoes or time points in one series?); one volume is needed")
    if not np.allclose(steps, np.median(steps, axis=0), atol=0.05 * float(np.median(lengths))):
        widest = int(lengths.argmax())
        raise UserError(
            f"{label}: slices are missing: distances run from {lengths.min():.3g} to {lengths.max():.3g} mm, "
            f"the widest after slice {widest + 1} of {len(slices)}"
        )
    return [int(index) for index in order], np.asarray(steps.mean(axis=0), np.float64)


def _pixels(path: Path, one: Any, label: str) -> NDArray[np.float64]:
    try:
        pixels = np.asarray(one.pixel_array, np.float64)
    except Exception as error:
        text = " ".join(str(error).split())
        raise UserError(f"{label}/{path.name}: its pixels cannot be decoded ({text}); decompress it (gdcmconv --raw)") from None
    if pixels.ndim != 2:
        raise UserError(f"{label}/{path.name}: a colour image; a magnitude is needed")
    return pixels * float(one.get("RescaleSlope", 1) or 1) + float(one.get("RescaleIntercept", 0) or 0)
