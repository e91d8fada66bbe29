"""What every reader hands over: one k-space array with whatever its file says about it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError

__all__ = ["Recording", "as_complex", "chosen_from"]


@dataclass
class Recording:
    """One k-space array (slice, coil, ky, kx) of a file, before anything is checked or detected.

    Attributes:
        kspace: complex64; unmeasured entries are 0.
        label: the file's name.
        part: which part of the file, where there are several.
        mask: what the file says was measured, bool (ky,), (ky, kx) or (slice, ky, kx), or None.
        calibration: what the file says are the calibration lines, [first, last + 1], or None.
        noise: noise-only samples, complex64 (coil, sample), on the scale of the k-space, or None.
        voxel_size_mm: [slice, y, x] or None.
        affine: 4x4, voxel (x, y, slice) -> scanner mm, or None.
        slice_mm: positions of the slices along their normal, or None.
        readout_keep: how many pixels of the readout are the field of view without its oversampling, or None if unknown.
        centred: whether the format itself puts the zero frequency at N//2.
        numbers: which slices of the file these are, where the reader left out some already; None: all.
        attrs: anything else worth keeping.
    """

    kspace: NDArray[np.complex64]
    label: str
    part: str = ""
    mask: NDArray[np.bool_] | None = None
    calibration: tuple[int, int] | None = None
    noise: NDArray[np.complex64] | None = None
    voxel_size_mm: tuple[float, float, float] | None = None
    affine: NDArray[np.float64] | None = None
    slice_mm: NDArray[np.float64] | None = None
    readout_keep: int | None = None
    centred: bool = False
    numbers: list[int] | None = None
    attrs: dict[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"{self.label} {self.part}".strip()


def as_complex(array: NDArray, label: str, what: str = "k-space") -> NDArray[np.complex64]:
    """complex64 from what scanners and scripts write: complex numbers, (real, imaginary) fields, or pairs on a last axis.

    Floating point of any width and integers are taken as pairs only where the last axis has length 2; an array without an
    imaginary part is refused, for a magnitude has no k-space.

    >>> as_complex(np.array([[3, 4], [0, -1]], np.int16), "scan.npy")
    array([3.+4.j, 0.-1.j], dtype=complex64)
    """
    array = np.asarray(array)  # HDF5 hands strings and numbers over as they are
    names = tuple(array.dtype.names or ())
    for real, imaginary in (("real", "imag"), ("r", "i"), ("re", "im")):
        if set(names) == {real, imaginary}:
            return np.asarray(array[real], np.float32) + np.complex64(1j) * np.asarray(array[imaginary], np.float32)
    if array.dtype.kind == "c":
        return array.astype(np.complex64, copy=False)
    if array.dtype.kind in "iuf" and array.ndim and array.shape[-1] == 2:
        return np.asarray(array[..., 0], np.float32) + np.complex64(1j) * np.asarray(array[..., 1], np.float32)
    raise UserError(
        f"{label}: {what} of type {array.dtype} and shape {array.shape} has no imaginary part; complex numbers are needed, or "
        "(real, imaginary) pairs on a last axis of length 2 (magnitude images are read by read_volume)"
    )


def chosen_from(numbers: Sequence[int] | None, count: int, what: str, label: str) -> list[int]:
    """The `numbers` asked for, of `count` slices or coils; all without a wish. `UserError` where they do not exist."""
    if numbers is None:
        return list(range(count))
    chosen = [int(i) for i in numbers]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= i < count for i in chosen):
        raise UserError(f"{label}: {what}={chosen} must be different numbers from 0 to {count - 1}")
    return chosen
