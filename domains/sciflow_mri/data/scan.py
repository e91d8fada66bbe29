"""The contract of a scan: an `xarray.Dataset` that every later step may rely on, made and checked here."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.geometry import frequencies
from sciflow_mri.data.sampling import calibration_of

__all__ = ["DIMS", "affine_of", "check", "label_of", "make_scan", "remake", "voxel_size_of"]

DIMS = ("slice", "coil", "ky", "kx")


def make_scan(
    kspace: NDArray[np.complex64],
    *,
    mask: NDArray[np.bool_],
    noise: NDArray[np.complex64] | None = None,
    calibration: tuple[int, int] | None = None,
    voxel_size_mm: tuple[float, float, float] | None = None,
    affine: NDArray[np.float64] | None = None,
    slices: NDArray | None = None,
    coils: NDArray | None = None,
    attrs: Mapping[str, Any] | None = None,
) -> xr.Dataset:
    r"""A checked scan of centred k-space.

    Image and k-space are related by \(x = \mathrm{fftshift}\,F^{-1}\,\mathrm{ifftshift}\,k\) with the unitary transform, the
    zero frequency at index N//2 of both axes.

    Arguments:
        kspace: complex (slice, coil, ky, kx); exactly 0 where unmeasured.
        mask: bool (ky,), or (ky, kx) where the readout is not whole.
        noise: complex (coil, sample), noise alone, on the scale of the k-space.
        calibration: [first, last + 1] of the calibration lines, without it the measured run around N//2.
        voxel_size_mm: [slice, y, x].
        affine: 4x4, voxel (x, y, slice) -> scanner mm as in NIfTI.
        slices: coordinate of the slices: mm along their normal where `voxel_size_mm` is known, otherwise indices.
        coils: coordinate of the coils.
        attrs: more attributes, for example `source`, `source_sha256`, `format`.

    Returns a `Dataset` with `kspace` (complex64), `mask` and perhaps `noise`, coordinates `slice`, `coil`, `ky`, `kx` (1/mm or
    cycles per field of view: `units`), and the attributes `calibration`, `calibration_kx` (two-dimensional masks),
    `voxel_size_mm`, `affine` (flattened) and `oversampling_removed` (0 or 1; netCDF has no booleans).

    Raises `UserError` for whatever `check` refuses.

    >>> scan = make_scan(np.ones((1, 2, 4, 6), np.complex64), mask=np.ones(4, bool), voxel_size_mm=(3.0, 1.0, 1.0))
    >>> scan.attrs["calibration"], scan["ky"].values.tolist(), scan.attrs["units"]
    ([0, 4], [-0.5, -0.25, 0.0, 0.25], '1/mm')
    """
    mask = np.asarray(mask, bool)
    count, channels, lines, width = kspace.shape
    found, found_kx = calibration_of(mask)
    if calibration is not None and not found[0] <= calibration[0] < calibration[1] <= found[1]:
        raise UserError(
            f"{_label(attrs or {})}: lines {calibration[0]} to {calibration[1] - 1} are stated as calibration lines, but "
            f"around its centre (ky = {lines // 2}) k-space is measured without holes only from {found[0]} to {found[1] - 1}"
        )
    voxel = [float(size) for size in voxel_size_mm] if voxel_size_mm is not None else [None, None, None]
    variables: dict[str, Any] = {
        "kspace": (DIMS, np.ascontiguousarray(kspace, np.complex64)),
        "mask": (("ky", "kx")[: mask.ndim], mask),
    }
    if noise is not None:
        variables["noise"] = (("coil", "sample"), np.ascontiguousarray(noise, np.complex64))
    known: dict[str, Any] = {"oversampling_removed": 0, **(attrs or {})}
    known["calibration"] = [int(line) for line in calibration or found]
    if found_kx is not None:
        known["calibration_kx"] = list(found_kx)
    known["units"] = "1/mm" if voxel_size_mm is not None else "cycles per field of view"
    if voxel_size_mm is not None:
        known["voxel_size_mm"] = voxel
    if affine is not None:
        known["affine"] = [float(number) for number in np.asarray(affine).ravel()]
    scan = xr.Dataset(
        variables,
        coords={
            "slice": np.arange(count) if slices is None else np.asarray(slices),
            "coil": np.arange(channels) if coils is None else np.asarray(coils),
            "ky": frequencies(lines, voxel[1]),
            "kx": frequencies(width, voxel[2]),
        },
        attrs=known,
    )
    for axis in ("ky", "kx"):
        scan[axis].attrs["units"] = known["units"]
    return check(scan)


def remake(scan: xr.Dataset, kspace: NDArray, mask: NDArray, **changes: Any) -> xr.Dataset:
    """A scan like `scan` with other k-space and mask; `changes` are arguments of `make_scan`; `attrs` are added."""
    dropped = {"calibration", "calibration_kx", "voxel_size_mm", "affine", "units"}
    kept = {name: value for name, value in scan.attrs.items() if name not in dropped}
    settings: dict[str, Any] = {
        "noise": scan["noise"].values if "noise" in scan else None,
        "voxel_size_mm": voxel_size_of(scan),
        "affine": affine_of(scan),
        "slices": scan["slice"].values,
        "coils": scan["coil"].values,
    }
    lines = changes.get("calibration")
    if lines is not None and lines[0] == lines[1]:  # without calibration lines: nothing to carry over
        changes["calibration"] = None
    return make_scan(kspace, mask=mask, **(settings | changes | {"attrs": kept | changes.get("attrs", {})}))


def check(scan: xr.Dataset) -> xr.Dataset:
    """The scan itself if it keeps the contract of `make_scan`; otherwise a `UserError` that names what is wrong.

    Looked at: dimensions and types, NaN and infinities, coils and slices that are zero everywhere, k-space outside the mask,
    shape of the noise samples, and that the calibration lines are measured.
    """
    label = label_of(scan)
    if not isinstance(scan, xr.Dataset) or "kspace" not in scan or "mask" not in scan:
        raise UserError(f"{label}: a scan is a Dataset with the variables kspace and mask (read and make_scan give one)")
    kspace, mask = scan["kspace"], scan["mask"]
    if kspace.dims != DIMS:
        raise UserError(f"{label}: kspace has dimensions {kspace.dims}, {DIMS} are needed")
    if kspace.dtype not in (np.complex64, np.complex128):
        raise UserError(f"{label}: kspace is {kspace.dtype}, complex64 is needed")
    if mask.dims not in (("ky",), ("ky", "kx")) or mask.dtype != bool:
        raise UserError(f"{label}: mask is {mask.dtype} over {mask.dims}, bool over ('ky',) or ('ky', 'kx') is needed")
    if not kspace.size:
        raise UserError(f"{label}: k-space is empty, its shape is {kspace.shape}")
    values = kspace.values
    _refuse_not_finite(values, label)
    there = np.asarray(np.any(values != 0, axis=(2, 3)))
    if not there.any():
        raise UserError(f"{label}: k-space is zero everywhere: nothing was measured")
    for axis, alive in (("coils", np.any(there, axis=0).tolist()), ("slices", np.any(there, axis=1).tolist())):
        numbers = [int(i) for i in scan["coil"].values] if axis == "coils" else list(range(len(alive)))
        dead, kept = ([one for one, live in zip(numbers, alive, strict=True) if live == wanted] for wanted in (False, True))
        if dead:
            raise UserError(
                f"{label}: k-space is zero everywhere in {axis} {', '.join(map(str, dead))}; "
                f"leave them out with {axis}={_short(kept)}"
            )
    outside = values[:, :, ~mask.values]
    if outside.any():
        count = int(np.any(outside != 0, axis=(0, 1) if mask.ndim == 2 else (0, 1, 3)).sum())
        raise UserError(f"{label}: k-space is not zero on {count} {'points' if mask.ndim == 2 else 'lines'} outside its mask")
    if "noise" in scan:
        if scan["noise"].dims != ("coil", "sample"):
            raise UserError(f"{label}: noise has dimensions {scan['noise'].dims}, ('coil', 'sample') are needed")
        _refuse_not_finite(scan["noise"].values, label, "noise")
    first, last = scan.attrs.get("calibration", (0, 0))
    lines = np.asarray(mask.values if mask.ndim == 1 else mask.values.any(1))
    if not 0 <= first <= last <= len(lines) or not lines[first:last].all():
        raise UserError(f"{label}: calibration [{first}, {last}] holds unmeasured lines")
    return scan


def label_of(scan: xr.Dataset) -> str:
    """How messages call a scan: its source file and which part of that."""
    return _label(getattr(scan, "attrs", {}))


def affine_of(scan: xr.Dataset) -> NDArray[np.float64] | None:
    """The 4x4 affine voxel (x, y, slice) -> scanner mm; without one of its own, None."""
    flat = scan.attrs.get("affine")
    return None if flat is None else np.array(flat, np.float64).reshape(4, 4)


def voxel_size_of(scan: xr.Dataset) -> tuple[float, float, float] | None:
    """[slice, y, x] in mm, or None."""
    size = scan.attrs.get("voxel_size_mm")
    return None if size is None else (float(size[0]), float(size[1]), float(size[2]))


def _label(attrs: Mapping[str, Any]) -> str:
    return f"{attrs.get('source', 'scan')} {attrs.get('part', '')}".strip()


def _refuse_not_finite(values: NDArray, label: str, what: str = "k-space") -> None:
    bad = ~np.isfinite(values)
    if bad.any():
        first = ", ".join(str(int(i)) for i in np.argwhere(bad)[0])
        axes = "(slice, coil, ky, kx)" if values.ndim == 4 else "(coil, sample)"
        raise UserError(f"{label}: {what} has {int(bad.sum())} NaN or infinite values, the first at {axes} = ({first})")


def _short(numbers: list[int]) -> str:
    if len(numbers) > 12 and numbers == list(range(numbers[0], numbers[-1] + 1)):
        return f"range({numbers[0]}, {numbers[-1] + 1})"
    return str(numbers)
