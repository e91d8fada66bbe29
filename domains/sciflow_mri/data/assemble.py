"""From what a reader found to scans: choices of the user, centre, mask, one scan per group of slices that share a mask."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.centre import find_centre, recentre
from sciflow_mri.data.recording import Recording, chosen_from
from sciflow_mri.data.sampling import ACCIDENTS, detect_mask, measured_points, reconcile
from sciflow_mri.data.scan import make_scan

__all__ = ["Centre", "assemble"]

Centre = Literal["auto", "middle", "peak"] | tuple[int, int]
log = logging.getLogger(__name__)


def assemble(
    found: Recording,
    *,
    slices: Sequence[int] | None,
    coils: Sequence[int] | None,
    mask: NDArray | None,
    centre: Centre,
    transpose: bool,
    attrs: Mapping[str, Any],
) -> list[xr.Dataset]:
    """The scans of one array; the options are those of `sciflow_mri.data.read`."""
    kspace, label = found.kspace, found.name
    if kspace.ndim != 4 or not kspace.size:
        raise UserError(f"{label}: k-space has shape {kspace.shape}, (slice, coil, ky, kx) with no empty axis is needed")
    voxel, affine, stated, keep = found.voxel_size_mm, found.affine, found.mask, found.readout_keep
    if mask is not None:
        stated = np.asarray(mask)
    if transpose:
        kspace = kspace.swapaxes(2, 3)
        voxel = (voxel[0], voxel[2], voxel[1]) if voxel else None
        affine = affine[:, [1, 0, 2, 3]] if affine is not None else None
        keep = None
        if found.mask is not None and mask is None and found.mask.ndim > 1:
            stated = found.mask.swapaxes(-1, -2)
    kept = chosen_from(coils, kspace.shape[1], "coils", label)
    chosen = found.numbers
    if chosen is None:
        chosen = chosen_from(slices, kspace.shape[0], "slices", label)
        kspace = kspace if slices is None else kspace[chosen]
    kspace = kspace if coils is None else kspace[:, kept]
    by_slice = stated is not None and stated.ndim == 3 and len(stated) == found.kspace.shape[0]
    if stated is not None and by_slice and found.numbers is None:
        stated = stated[chosen]
    # before anything is detected: a NaN would hide the peak and count as measured
    bad = ~np.isfinite(kspace)
    if bad.any():
        first = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        raise UserError(
            f"{label}: k-space has {int(bad.sum())} NaN or infinite values, the first at (slice, coil, ky, kx) = ({first})"
        )
    empty = np.flatnonzero(~kspace.any(axis=(1, 2, 3)))
    if len(empty) == len(chosen):
        raise UserError(f"{label}: k-space is zero everywhere: nothing was measured")
    if len(empty):
        left = [one for index, one in enumerate(chosen) if index not in empty]
        numbers = ", ".join(str(chosen[int(index)]) for index in empty)
        raise UserError(f"{label}: k-space is zero everywhere in slices {numbers}; leave them out with slices={left}")
    before = _centre(kspace, centre, found)
    known = dict(attrs) | found.attrs
    if before != (kspace.shape[2] // 2, kspace.shape[3] // 2):
        kspace = recentre(kspace, before, label)
        known["recentred_from"] = list(before)
        stated = None if stated is None else _roll_mask(stated, before, kspace.shape)
    calibration = _shifted(found.calibration, before[0], kspace.shape[2]) if not transpose else None
    if keep is not None:
        known["readout_keep"] = int(keep)
    scans = []
    for members, points in _groups(measured_points(kspace)):
        one = np.asarray(chosen)[members]
        parts = [found.part, *([] if len(members) == len(chosen) else [f"slices {', '.join(map(str, one))}"])]
        part = {"part": ", ".join(filter(None, parts))} if any(parts) else {}
        name = f"{found.label} {part.get('part', '')}".strip()
        said = np.asarray(stated[members].any(axis=0)) if stated is not None and by_slice else stated
        agreed = reconcile(said, detect_mask(points, name), points, name)
        where = found.slice_mm[one] if found.slice_mm is not None else one * voxel[0] if voxel else one
        scans.append(
            make_scan(
                kspace if len(members) == len(chosen) else kspace[members],
                mask=agreed,
                noise=None if found.noise is None else found.noise[kept],
                calibration=calibration,
                voxel_size_mm=voxel,
                affine=None if affine is None else _affine_of(affine, one, name),
                slices=where,
                coils=np.asarray(kept),
                attrs={"source": found.label, **part, **known},
            )
        )
    return scans


def _centre(kspace: NDArray, centre: Centre, found: Recording) -> tuple[int, int]:
    middle = (kspace.shape[2] // 2, kspace.shape[3] // 2)
    if isinstance(centre, str):
        if centre not in ("auto", "middle", "peak"):
            raise UserError(f"centre is {centre!r}; 'auto', 'middle', 'peak' or (ky, kx) is needed")
        if centre == "middle" or (centre == "auto" and found.centred):
            return middle
        peak = find_centre(kspace)
        if peak is None and centre == "peak":
            raise UserError(f"{found.name}: no point of k-space stands out as its centre; pass centre=(ky, kx) or 'middle'")
        if peak is not None and peak != middle:
            log.info("%s: the peak of k-space at (ky, kx) = %s is moved to %s", found.name, peak, middle)
        return peak or middle
    return int(centre[0]), int(centre[1])


def _groups(points: NDArray[np.bool_]) -> list[tuple[list[int], NDArray[np.bool_]]]:
    """Slices with the same measured lines (accidental zeros aside) and the points that any of them measured."""
    groups: dict[bytes, list[int]] = {}
    for index, one in enumerate(points):
        lines, columns = one.any(1), one.any(0)
        key = np.outer(lines, columns) if one[np.ix_(lines, columns)].mean() >= 1 - ACCIDENTS else one
        groups.setdefault(key.tobytes(), []).append(index)
    return [(members, np.asarray(points[members].any(0))) for members in groups.values()]


def _roll_mask(mask: NDArray, before: tuple[int, int], shape: tuple[int, ...]) -> NDArray:
    if mask.shape == (shape[2],):
        return np.roll(mask, shape[2] // 2 - before[0])
    return recentre(mask, before) if mask.shape[-2:] == shape[2:] else mask


def _shifted(lines: tuple[int, int] | None, before: int, count: int) -> tuple[int, int] | None:
    shift = count // 2 - before
    return None if lines is None else (lines[0] + shift, lines[1] + shift)


def _affine_of(affine: NDArray[np.float64], slices: NDArray[np.int64], label: str) -> NDArray[np.float64] | None:
    """The affine of those slices; None if they are not evenly spaced, which an affine cannot say."""
    steps = np.diff(slices)
    if len(steps) and (steps != steps[0]).any():
        log.warning("%s: slices %s are not evenly spaced, the affine is left out", label, slices.tolist())
        return None
    moved = affine.copy()
    moved[:3, 3] += affine[:3, 2] * int(slices[0])
    if len(steps):
        moved[:3, 2] *= int(steps[0])
    return moved
