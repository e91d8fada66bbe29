"""Which entries were measured, and which of them are calibration lines: from the zeros of k-space and the file's own word."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError

__all__ = ["ACCIDENTS", "calibration_of", "detect_mask", "measured_points", "reconcile", "require_calibration"]

# k-space stored as integers holds exact zeros where the signal is below half a unit: so many are no second mask
ACCIDENTS = 0.02


def measured_points(kspace: NDArray[np.complex64]) -> NDArray[np.bool_]:
    """bool (slice, ky, kx): some coil is not exactly 0 there."""
    return (kspace != 0).any(axis=1)


def detect_mask(points: NDArray[np.bool_], label: str) -> NDArray[np.bool_]:
    """The mask behind the measured `points` (ky, kx) of a slice: bool (ky,) if whole lines were measured, else (ky, kx).

    A readout that is cut on one side (asymmetric echo) gives a (ky, kx) mask. Up to 2 % exact zeros inside measured lines
    count as accidents of integer data. Raises `UserError` if nothing was measured, and if the lines that are missing run along
    kx while ky is complete: then the axes are swapped.

    >>> points = np.zeros((4, 6), bool)
    >>> points[[0, 2, 3]] = True
    >>> detect_mask(points, "scan").tolist()
    [True, False, True, True]
    """
    rows, columns = np.asarray(points.any(1)), np.asarray(points.any(0))
    if not rows.any():
        raise UserError(f"{label}: k-space is zero everywhere: nothing was measured")
    if columns.all() and points[rows].mean() >= 1 - ACCIDENTS:
        return rows
    if rows.all() and points[:, columns].mean() >= 1 - ACCIDENTS and not _one_run(columns):
        raise UserError(
            f"{label}: the {int((~columns).sum())} missing lines of {len(columns)} run along kx, the readout, "
            "and ky is complete: phase encoding and readout are swapped; pass transpose=True"
        )
    return points


def reconcile(stated: NDArray | None, detected: NDArray[np.bool_], points: NDArray[np.bool_], label: str) -> NDArray[np.bool_]:
    """The mask on which the file's statement and the zeros of k-space agree; `UserError` where they do not.

    `points` (ky, kx) is what was measured. A statement about lines is compared line by line and a statement about points
    point by point, where 2 % of the stated points may be exact zeros.
    """
    if stated is None:
        return detected
    stated, lines, width = np.squeeze(np.asarray(stated)), *points.shape
    if stated.shape not in ((lines,), (lines, width)):
        swapped = "; it fits kx: pass transpose=True if the axes are swapped" if stated.shape == (width,) else ""
        raise UserError(
            f"{label}: its mask has shape {stated.shape}, k-space has {lines} lines (ky) of {width} points (kx): "
            f"({lines},) or ({lines}, {width}) is needed{swapped}"
        )
    if not np.isin(stated, (0, 1)).all():
        raise UserError(f"{label}: its mask must hold 0 and 1 only, it has values from {stated.min()} to {stated.max()}")
    stated = stated.astype(bool)
    if stated.ndim == 2 and (stated == stated[:, :1]).all():
        stated = stated[:, 0]
    there = points.any(1) if stated.ndim == 1 else points
    unit = "lines" if stated.ndim == 1 else "points"
    beyond, absent = int((there & ~stated).sum()), int((stated & ~there).sum())
    if beyond:
        raise UserError(
            f"{label}: k-space is not zero on {beyond} {unit} that its mask calls unmeasured; "
            "a full scan is undersampled by prepare(scan, undersample=mask), a wrong mask is left out or mended"
        )
    if absent > (0 if stated.ndim == 1 else ACCIDENTS * stated.sum()):
        raise UserError(f"{label}: its mask calls {absent} {unit} measured on which k-space is zero in every coil")
    return stated if stated.ndim == 2 or detected.ndim == 1 else detected


def calibration_of(mask: NDArray[np.bool_]) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """The fully sampled centre: [first, last + 1] along ky, and along kx for a (ky, kx) mask (else None).

    Along ky the run of measured lines around N//2; in two dimensions the largest measured rectangle around (N//2, M//2). An
    unmeasured centre gives the empty range [N//2, N//2].

    >>> calibration_of(np.array([1, 0, 1, 1, 1, 0, 1], bool))
    ((2, 5), None)
    """
    if mask.ndim == 1:
        return _run(mask), None
    middle, column = mask.shape[0] // 2, mask.shape[1] // 2
    if not mask[middle, column]:
        return (middle, middle), (column, column)
    left = np.array([_run(row)[0] if row[column] else column + 1 for row in mask])
    right = np.array([_run(row)[1] if row[column] else column for row in mask])
    first, last = _run(mask[:, column])
    # tightest columns from the middle row outwards, upwards and downwards
    left_up, left_down = np.maximum.accumulate(left[first : middle + 1][::-1]), np.maximum.accumulate(left[middle:last])
    right_up, right_down = np.minimum.accumulate(right[first : middle + 1][::-1]), np.minimum.accumulate(right[middle:last])
    wide = np.minimum(right_up[:, None], right_down) - np.maximum(left_up[:, None], left_down)
    high = np.arange(len(left_up))[:, None] + np.arange(len(left_down)) + 1
    up, down = np.unravel_index(int((wide * high).argmax()), wide.shape)
    lines = (middle - int(up), middle + int(down) + 1)
    return lines, (int(max(left_up[up], left_down[down])), int(min(right_up[up], right_down[down])))


def require_calibration(calibration: tuple[int, int], lines: int, minimum: int, label: str) -> None:
    """`UserError` if there are fewer than `minimum` calibration lines."""
    count = calibration[1] - calibration[0]
    if count < minimum:
        found = f"only {count} fully sampled" if count else "no measured"
        raise UserError(
            f"{label}: no calibration lines: {found} lines around the centre, ky = {lines // 2} of {lines}, and coil maps need "
            f"{minimum}; a scan with a fully sampled centre is needed (minimum_calibration lowers the limit)"
        )


def _run(line: NDArray[np.bool_]) -> tuple[int, int]:
    """The run of True around the middle of `line`."""
    middle = len(line) // 2
    if not line[middle]:
        return middle, middle
    holes = np.flatnonzero(~line)
    before, after = holes[holes < middle], holes[holes > middle]
    return int(before[-1]) + 1 if len(before) else 0, int(after[0]) if len(after) else len(line)


def _one_run(line: NDArray[np.bool_]) -> bool:
    there = np.flatnonzero(line)
    return bool(there[-1] - there[0] + 1 == len(there))
