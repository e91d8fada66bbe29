"""What draws of an image say pixel by pixel: mean, standard deviation, intervals; beside what was measured."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from sciflow_mri.data.geometry import shift_origin
from sciflow_mri.data.scan import affine_of, voxel_size_of
from sciflow_mri.posterior.coverage import intervals

__all__ = ["DIMS", "LEVELS", "coordinates", "geometry", "image_group", "pixel_summary"]

DIMS = ("image_y", "image_x")  # the draws are called x, so that no dimension can be
LEVELS = (0.5, 0.8, 0.95)
_UNIT = "units of the scan"


def pixel_summary(draws: NDArray[np.complexfloating], levels: Sequence[float] = LEVELS) -> dict[str, NDArray]:
    """Of draws (draw, y, x): `mean` (y, x), complex; `std` (y, x) and `interval` (level, 2, y, x) of their magnitude.

    Intervals are central, those of `sciflow_mri.posterior.coverage.intervals`: a truth that is exchangeable with the n draws is
    covered with probability `level`, or (n - 1) / (n + 1) if that is less. The standard deviation has the denominator
    draws - 1 (of one draw it is 0).

    >>> found = pixel_summary(np.array([1.0, 2j, -3.0, -4j, 5.0]).reshape(5, 1, 1), [0.5])
    >>> found["mean"].round(6).item(), found["std"].round(4).item(), found["interval"].ravel().tolist()
    ((0.6-0.4j), 1.5811, [1.5, 4.5])
    """
    magnitude = np.abs(draws)
    ends = intervals(torch.from_numpy(magnitude), levels).numpy()
    return {
        "mean": draws.mean(0),
        "std": magnitude.std(0, ddof=1 if len(draws) > 1 else 0),
        "interval": ends,
    }


def image_group(draws: NDArray[np.complexfloating], zero_filled: NDArray, scan: xr.Dataset, slice: int) -> xr.Dataset:
    """The summary of draws (draw, y, x) of one slice as a Dataset with its place in the scanner.

    Variables: `mean` (complex posterior mean), `std`, `interval` (level, bound, y, x), `zero_filled` (complex). Attributes:
    `slice` and, where known, `voxel_size_mm` [slice, y, x] and `affine` (flattened, voxel (x, y, slice) -> scanner mm).
    """
    found = pixel_summary(draws)
    return xr.Dataset(
        {
            "mean": (DIMS, found["mean"], {"units": _UNIT, "description": "posterior mean of the complex image"}),
            "std": (DIMS, found["std"], {"units": _UNIT, "description": "posterior standard deviation of the magnitude"}),
            "interval": (
                ("level", "bound", *DIMS), found["interval"],
                {"units": _UNIT, "description": "central posterior intervals of the magnitude"},
            ),
            "zero_filled": (DIMS, zero_filled, {"units": _UNIT, "description": "coil-combined image of the measured lines"}),
        },
        coords={"level": list(LEVELS), "bound": ["lower", "upper"], **coordinates(scan)},
        attrs=geometry(scan, slice),
    )  # fmt: skip


def coordinates(scan: xr.Dataset) -> dict[str, Any]:
    """Positions of rows and columns: mm from the origin of the transform at N//2, or pixels where the voxel size is unknown."""
    voxel = voxel_size_of(scan)
    unit = "pixel" if voxel is None else "mm"
    found = {}
    for axis, (dim, size) in enumerate(zip(DIMS, (scan.sizes["ky"], scan.sizes["kx"]), strict=True)):
        step = 1.0 if voxel is None else voxel[1 + axis]
        found[dim] = (dim, (np.arange(size) - size // 2) * step, {"units": unit})
    return found


def geometry(scan: xr.Dataset, slice: int) -> dict[str, Any]:
    """Attributes that say where the slice is; only what the scan states."""
    voxel, affine = voxel_size_of(scan), affine_of(scan)
    found: dict[str, Any] = {"slice": slice % scan.sizes["slice"]}
    if voxel is not None:
        found["voxel_size_mm"] = [float(size) for size in voxel]
    if affine is not None:
        found["affine"] = [float(number) for number in shift_origin(affine, (0, 0, found["slice"])).ravel()]
    return found
