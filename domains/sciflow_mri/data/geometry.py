"""Where voxels are: affines that keep their place when an image is cropped or its k-space is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["frequencies", "shift_origin", "turn_to_ras", "widen_voxels"]


def frequencies(pixels: int, voxel_size_mm: float | None) -> NDArray[np.float64]:
    """Frequencies of a centred axis: (index - N//2) / (N * voxel size) in 1/mm, without a size in cycles per field of view.

    >>> frequencies(4, 2.5).tolist(), frequencies(3, None).tolist()
    ([-0.2, -0.1, 0.0, 0.1], [-1.0, 0.0, 1.0])
    """
    cycles = np.arange(pixels, dtype=np.float64) - pixels // 2
    return cycles if voxel_size_mm is None else cycles / (pixels * voxel_size_mm)


def shift_origin(affine: NDArray[np.float64], first: Sequence[float]) -> NDArray[np.float64]:
    """The affine of an image of which only the voxels from index `first` (x, y, slice) on are left."""
    shifted = np.array(affine, np.float64)
    shifted[:3, 3] += shifted[:3, :3] @ np.asarray(first, np.float64)
    return shifted


def widen_voxels(affine: NDArray[np.float64], before: Sequence[int], after: Sequence[int]) -> NDArray[np.float64]:
    """The affine after a centred k-space of `before` points (x, y) was cropped to `after`: same field of view, larger voxels.

    The point that stays is the one where the transform has its origin, index N//2 before and n//2 after, so that the image
    does not move by a part of a voxel.

    >>> widen_voxels(np.eye(4), (8, 8), (4, 4))[:2].tolist()
    [[2.0, 0.0, 0.0, 0.0], [0.0, 2.0, 0.0, 0.0]]
    """
    widened = np.array(affine, np.float64)
    for axis, (n, m) in enumerate(zip(before, after, strict=True)):
        column = np.array(widened[:3, axis])
        widened[:3, axis] = column * n / m
        widened[:3, 3] += column * (n // 2) - widened[:3, axis] * (m // 2)
    return widened


def turn_to_ras(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """From the patient axes of DICOM and MRD (left, posterior, superior) to those of NIfTI (right, anterior, superior)."""
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine
