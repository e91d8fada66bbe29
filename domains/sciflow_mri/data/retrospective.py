"""What turns a real scan into an experiment: fewer lines than were measured, or a smaller k-space. Labelled as such."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.geometry import widen_voxels
from sciflow_mri.data.scan import affine_of, label_of, remake, voxel_size_of

__all__ = ["crop_kspace", "undersample"]


def crop_kspace(scan: xr.Dataset, size: int | tuple[int, int]) -> xr.Dataset:
    """The middle `size` (or (ky, kx)) points of k-space: same field of view, larger voxels, the centre at n//2.

    The attribute `retrospective` says so: a scanner asked for this matrix would sample the same points with other timing.
    Raises `UserError` if k-space is smaller than `size`.
    """
    lines, width = scan.sizes["ky"], scan.sizes["kx"]
    n, m = (size, size) if isinstance(size, int) else size
    if not (2 <= n <= lines and 2 <= m <= width):
        raise UserError(f"{label_of(scan)}: k-space has {lines} x {width} points (ky, kx), {n} x {m} cannot be cropped from it")
    if (n, m) == (lines, width):
        return scan
    top, left = lines // 2 - n // 2, width // 2 - m // 2
    kspace = scan["kspace"].values[:, :, top : top + n, left : left + m]
    mask = scan["mask"].values
    mask = mask[top : top + n] if mask.ndim == 1 else mask[top : top + n, left : left + m]
    if mask.ndim == 2 and (mask == mask[:, :1]).all():
        mask = mask[:, 0]
    first, last = (min(max(line - top, 0), n) for line in scan.attrs["calibration"])
    voxel, affine = voxel_size_of(scan), affine_of(scan)
    changed = remake(
        scan,
        kspace,
        mask,
        calibration=(first, last) if last > first else None,
        voxel_size_mm=None if voxel is None else (voxel[0], voxel[1] * lines / n, voxel[2] * width / m),
        affine=None if affine is None else widen_voxels(affine, (width, lines), (m, n)),
        attrs=_labelled(scan, f"k-space cropped from {lines} x {width} to {n} x {m} (ky, kx)"),
    )
    changed.attrs.pop("readout_keep", None)
    return changed


def undersample(scan: xr.Dataset, mask: NDArray) -> xr.Dataset:
    """The scan as if only `mask`, bool (ky,) or (ky, kx), had been measured; everything else is set to 0.

    The attribute `retrospective` says so. Raises `UserError` for a mask of another shape or one that asks for unmeasured
    entries.
    """
    label, lines, width = label_of(scan), scan.sizes["ky"], scan.sizes["kx"]
    wanted = np.asarray(mask)
    if wanted.shape not in ((lines,), (lines, width)):
        raise UserError(
            f"{label}: the mask to undersample with has shape {wanted.shape}, k-space {lines} lines (ky) of {width} points: "
            f"({lines},) or ({lines}, {width}) is needed"
        )
    if not np.isin(wanted, (0, 1)).all():
        raise UserError(f"{label}: the mask to undersample with must hold 0 and 1 only")
    wanted, measured = wanted.astype(bool), scan["mask"].values
    if wanted.ndim < measured.ndim:
        wanted = wanted[:, None] & measured
    elif wanted.ndim > measured.ndim:
        measured = np.broadcast_to(measured[:, None], wanted.shape)
    absent = int((wanted & ~measured).sum())
    if absent:
        raise UserError(f"{label}: the mask to undersample with asks for {absent} lines or points that were not measured")
    kspace = np.where(wanted[:, None] if wanted.ndim == 1 else wanted, scan["kspace"].values, 0)
    unit = "lines" if wanted.ndim == 1 else "points"
    return remake(scan, kspace, wanted, attrs=_labelled(scan, f"undersampled to {int(wanted.sum())} of {wanted.size} {unit}"))


def _labelled(scan: xr.Dataset, what: str) -> dict[str, str]:
    before = scan.attrs.get("retrospective")
    return {"retrospective": f"{before}; {what}" if before else what}
