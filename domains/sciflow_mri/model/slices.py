"""Oblique slices through a head, rendered finer than they are needed."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import map_coordinates
from scipy.spatial.transform import Rotation

from sciflow.errors import UserError

__all__ = ["normalised", "oblique_slice"]

_FOREGROUND = 0.08  # of the 99.5th percentile: what counts as head
_LEAST = 0.15  # share of a plane that is head
_COARSE = 48  # points along a side of the look at a plane that finds the head in it
_TRIES = 200


def normalised(volume: NDArray[np.floating]) -> NDArray[np.float32]:
    """A magnitude volume (z, y, x) with its 99.5th percentile over the head at 1, cut to [0, 1.5].

    Raises `UserError` for volumes that are not three-dimensional, not finite, negative or constant.
    """
    volume = np.asarray(volume, np.float32)
    if volume.ndim != 3 or min(volume.shape) < 16:
        raise UserError(f"the volume has shape {volume.shape}: training needs (z, y, x) of at least 16 voxels a side")
    if not np.isfinite(volume).all() or volume.min() < 0 or volume.max() == volume.min():
        raise UserError("the volume is negative, constant or not finite somewhere: training needs a magnitude image")
    head = volume[volume > _FOREGROUND * np.percentile(volume, 99.5)]
    return np.clip(volume / np.percentile(head, 99.5), 0, 1.5).astype(np.float32)


def oblique_slice(
    volume: NDArray[np.float32], size: int, rng: np.random.Generator, *, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> NDArray[np.float32]:
    """One plane (size, size) through a `normalised` volume, in which the head fills 72 to 98 per cent of each side.

    Orientation axial (half of them), coronal or sagittal, tilted by up to 20 degrees about each axis; both in-plane
    axes are flipped at random, and exchanged in one of four. The two sides are scaled independently, as fields of view are.

    Arguments:
        volume: (z, y, x).
        size: points along a side; beyond the volume the image is 0.
        spacing: of voxels (z, y, x), any unit.

    Raises `UserError` if 200 planes in a row hold too little head.
    """
    extent = np.array(volume.shape) * np.array(spacing)
    for _ in range(_TRIES):
        axis = rng.choice(3, p=(0.5, 0.25, 0.25))
        tilt = Rotation.from_euler("xyz", rng.uniform(-20, 20, 3), degrees=True).as_matrix()
        across = np.delete(np.eye(3), axis, 0) @ tilt.T  # two unit vectors in the plane, (2, 3) in (z, y, x)
        normal = np.eye(3)[axis] @ tilt.T
        centre = extent / 2 + normal * rng.uniform(-0.45, 0.45) * extent[axis]
        reach = np.linalg.norm(extent) / 2
        look = _plane(volume, centre, across, np.array([[-reach, reach]] * 2), _COARSE, spacing)
        inside = look > _FOREGROUND
        rows, columns = np.flatnonzero(inside.any(1)), np.flatnonzero(inside.any(0))
        if len(rows) < 8 or len(columns) < 8:
            continue
        if inside[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].mean() < 0.4:
            continue
        step = 2 * reach / _COARSE
        limits = []
        for found in (rows, columns):
            low, high = -reach + found[0] * step, -reach + (found[-1] + 1) * step
            side = (high - low) / rng.uniform(0.72, 0.98)
            middle = (low + high) / 2 + rng.uniform(-0.5, 0.5) * (side - (high - low))
            limits.append((middle - side / 2, middle + side / 2))
        image = _plane(volume, centre, across, np.array(limits), size, spacing)
        if (image > _FOREGROUND).mean() < _LEAST:
            continue
        image = image[:: rng.choice((-1, 1)), :: rng.choice((-1, 1))]
        return np.ascontiguousarray(image.T if rng.random() < 0.25 else image)
    raise UserError(f"no plane through the volume of shape {volume.shape} holds enough of a head: is it a head?")


def _plane(
    volume: NDArray[np.float32], centre: NDArray[np.float64], across: NDArray[np.float64], limits: NDArray[np.float64],
    size: int, spacing: tuple[float, float, float],
) -> NDArray[np.float32]:  # fmt: skip
    steps = (np.arange(size) + 0.5) / size
    u, v = (low + steps * (high - low) for low, high in limits)
    points = centre[:, None, None] + across[0][:, None, None] * u[:, None] + across[1][:, None, None] * v
    voxels = points / np.array(spacing)[:, None, None] - 0.5
    return map_coordinates(volume, voxels.astype(np.float32), order=1, mode="constant", cval=0.0, prefilter=False)
