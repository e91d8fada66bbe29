"""NumPy: k-space alone in `.npy`, with mask, noise and geometry in `.npz`."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow_mri.data.recording import Recording, as_complex
from sciflow_mri.data.scan import DIMS, check

__all__ = ["read_numpy", "write_npz"]

# attributes that speak of what was done to a scan, kept as JSON beside its arrays
HISTORY = (
    "oversampling_removed",
    "prewhitened",
    "noise_sigma",
    "retrospective",
    "recentred_from",
    "averages",
    "origin",
    "origin_sha256",
)


def read_numpy(path: Path, label: str, axes: str | None = None) -> list[Recording]:
    """k-space (ky, kx), (coil, ky, kx) or (slice, coil, ky, kx), or in the order that `axes` names.

    A `.npz` holds `kspace` and any of `mask`, `noise`, `calibration`, `voxel_size_mm`, `affine`, `slice_mm`, `readout_keep` and
    `centred` (1 if the zero frequency is at N//2). Groups of another size carry a number: `kspace_0`, `mask_0`, `kspace_1`.
    """
    try:
        # a file of objects would run code when it is read
        content = np.load(path, allow_pickle=False)
        if isinstance(content, np.ndarray):
            arrays = {"kspace": content}
        else:
            with content:
                arrays = {name: content[name] for name in content.files}
    except Exception as error:  # numpy and zipfile raise whatever a damaged file provokes
        text = " ".join(str(error).split())
        if "pickle" in text and "Object arrays" in text:
            text = "it holds Python objects, write plain numbers"
        elif "pickle" in text:
            text = "it is no NumPy file or its header is damaged"
        raise UserError(f"{label}: cannot be read as NumPy file: {text}") from None
    parts = sorted(
        {m.group(1) for name in arrays if (m := re.fullmatch(r"kspace(_\d+)?", name))}, key=lambda s: int((s or "_0")[1:])
    )
    if not parts:
        raise UserError(f"{label}: no array 'kspace'; it has: {', '.join(arrays) or 'nothing'}")
    return [_recording(arrays, part or "", label, axes) for part in parts]


def write_npz(path: str | Path, scans: xr.Dataset | list[xr.Dataset]) -> None:
    """Write scans so that `read` gives the same back, with mask, noise, geometry and what was done to them.

    The file they came from is kept as `origin` and `origin_sha256`.
    """
    arrays: dict[str, Any] = {}
    many = [scans] if isinstance(scans, xr.Dataset) else list(scans)
    for index, scan in enumerate(map(check, many)):
        part = f"_{index}" if len(many) > 1 else ""
        arrays[f"kspace{part}"] = scan["kspace"].values
        arrays[f"mask{part}"] = scan["mask"].values
        arrays[f"centred{part}"] = 1
        arrays[f"calibration{part}"] = scan.attrs["calibration"]
        if "noise" in scan:
            arrays[f"noise{part}"] = scan["noise"].values
        if "voxel_size_mm" in scan.attrs:
            arrays[f"voxel_size_mm{part}"] = scan.attrs["voxel_size_mm"]
            arrays[f"slice_mm{part}"] = scan["slice"].values
        if "affine" in scan.attrs:
            arrays[f"affine{part}"] = np.reshape(scan.attrs["affine"], (4, 4))
        history = {name: scan.attrs[name] for name in HISTORY if name in scan.attrs}
        if "origin" not in history and "source_sha256" in scan.attrs:
            history |= {"origin": scan.attrs["source"], "origin_sha256": scan.attrs["source_sha256"]}
        arrays[f"history{part}"] = json.dumps(history)
        if "readout_keep" in scan.attrs:
            arrays[f"readout_keep{part}"] = scan.attrs["readout_keep"]
    with replacing(path) as beside, open(beside, "wb") as file:
        np.savez(file, **arrays)


def _history(text: NDArray | None, label: str) -> dict[str, Any]:
    if text is None:
        return {}
    try:
        found = json.loads(str(text))
        return {name: found[name] for name in HISTORY if name in found}
    except (ValueError, TypeError):
        raise UserError(f"{label}: its history is no JSON object: the file was not written by write_npz") from None


def _recording(arrays: dict[str, NDArray], part: str, label: str, axes: str | None) -> Recording:
    def get(name: str, shape: tuple[int, ...] | None = None) -> NDArray | None:
        array = arrays.get(name + part)
        if array is not None and shape is not None and array.shape != shape:
            raise UserError(f"{label}: {name} has shape {array.shape}, {shape} is needed")
        return array

    kspace = as_complex(arrays[f"kspace{part}"], label)
    names = axes.replace(",", " ").split() if axes else list(DIMS[-kspace.ndim :])
    if len(names) != kspace.ndim or len(set(names)) < len(names) or not {"ky", "kx"} <= set(names) <= set(DIMS):
        raise UserError(
            f"{label}: k-space has shape {kspace.shape}"
            + (f" and axes are {axes!r}" if axes else "")
            + "; (ky, kx), (coil, ky, kx) or (slice, coil, ky, kx) is needed, or axes='ky kx coil' naming each axis"
        )
    kspace = kspace.transpose([names.index(name) for name in DIMS if name in names])
    for position, name in enumerate(DIMS):
        if name not in names:
            kspace = np.expand_dims(kspace, position)
    noise = get("noise")
    if noise is not None:
        noise = as_complex(noise, label, "noise")
        if noise.ndim != 2 or noise.shape[0] != kspace.shape[1]:
            raise UserError(f"{label}: noise has shape {noise.shape}, ({kspace.shape[1]} coils, samples) is needed")
    voxel, lines, keep = get("voxel_size_mm", (3,)), get("calibration", (2,)), get("readout_keep")
    return Recording(
        kspace,
        label,
        part=f"kspace{part}" if part else "",
        mask=get("mask"),
        calibration=None if lines is None else (int(lines[0]), int(lines[1])),
        noise=noise,
        voxel_size_mm=None if voxel is None else (float(voxel[0]), float(voxel[1]), float(voxel[2])),
        affine=get("affine", (4, 4)),
        slice_mm=get("slice_mm", (kspace.shape[0],)),
        readout_keep=None if keep is None else int(keep),
        centred=bool(arrays.get(f"centred{part}", 0)),
        attrs=_history(arrays.get(f"history{part}"), label),
    )
