"""Where the zero frequency is, and how it gets to N//2."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError

__all__ = ["find_centre", "recentre"]

# energy of the peak over that of the median measured point; noise alone stays below 30 even at one coil, scans exceed 1e4
CLEAR = 100.0


def find_centre(kspace: NDArray[np.complex64]) -> tuple[int, int] | None:
    """(ky, kx) of the largest energy summed over slices and coils; None where no point stands out.

    A point stands out if its energy is 100 times that of the median measured point. A linear phase of the object moves the
    peak by a point or so; to call that point the centre only takes the linear phase off the image.
    """
    energy = np.einsum("scyx,scyx->yx", kspace.real, kspace.real, dtype=np.float64)
    energy += np.einsum("scyx,scyx->yx", kspace.imag, kspace.imag, dtype=np.float64)
    measured = energy[energy > 0]
    if not len(measured) or energy.max() < CLEAR * np.median(measured):
        return None
    ky, kx = np.unravel_index(int(energy.argmax()), energy.shape)
    return int(ky), int(kx)


def recentre(kspace: NDArray, centre: tuple[int, int], label: str = "k-space") -> NDArray:
    """Roll the last two axes so that `centre` comes to N//2.

    On an image grid of N pixels frequencies count modulo N, so that a roll renames samples and loses none: the sample that
    leaves on one side is the same frequency on the other.

    >>> recentre(np.array([[9, 1, 0, 2]]), (0, 0)).tolist()
    [[0, 2, 9, 1]]
    """
    height, width = kspace.shape[-2:]
    if not (0 <= centre[0] < height and 0 <= centre[1] < width):
        raise UserError(f"{label}: centre {tuple(centre)} is not within its {height} x {width} points (ky, kx)")
    return np.roll(kspace, (height // 2 - centre[0], width // 2 - centre[1]), axis=(-2, -1))
