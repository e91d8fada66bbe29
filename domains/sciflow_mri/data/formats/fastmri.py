"""fastMRI: HDF5 with `kspace` (slice, coil, readout, phase), the ISMRMRD header as text, and a mask in test files."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow_mri.data.formats.hdf5 import opened
from sciflow_mri.data.header import Encoding, parse_header
from sciflow_mri.data.recording import Recording, as_complex, chosen_from
from sciflow_mri.data.scan import check, label_of, voxel_size_of

__all__ = ["read_fastmri", "write_fastmri"]

COPIED = ("acquisition", "patient_id", "acceleration", "num_low_frequency")


def read_fastmri(
    path: Path, label: str, *, header: bool = True, slices: Sequence[int] | None = None, transpose: bool = False
) -> list[Recording]:
    """The k-space (slice, coil, kx, ky) of a file, transposed to (slice, coil, ky, kx); single-coil files have one coil.

    `transpose` says that the file has ky before kx already. Only the chosen `slices` are read from the disk.

    Lines beyond the encoding limits of the header are padding: they are zero and count as unmeasured, whatever the file's mask
    says of them. Source: Zbontar et al., "fastMRI: An Open Dataset and Benchmarks for Accelerated MRI", 2018, arXiv 1811.08839.
    """
    with opened(path) as file:
        if "kspace" not in file or not isinstance(file["kspace"], h5py.Dataset):
            raise UserError(f"{label}: no dataset 'kspace'; it has: {', '.join(map(str, file)) or 'nothing'}")
        count = file["kspace"].shape[0] if file["kspace"].ndim else 0
        numbers = None if slices is None else chosen_from(slices, count, "slices", label)
        whole = file["kspace"]
        # one by one: h5py takes lists of indices in ascending order only
        stored = whole[()] if numbers is None else np.stack([whole[number] for number in numbers])
        kspace = as_complex(stored, label)
        text = file["ismrmrd_header"][()] if "ismrmrd_header" in file else None
        mask = np.squeeze(file["mask"][()]) if "mask" in file else None
        attrs = {name: _plain(file.attrs[name]) for name in COPIED if name in file.attrs}
    if kspace.ndim == 3:
        kspace = kspace[:, None]
    if kspace.ndim != 4:
        raise UserError(f"{label}: kspace has shape {kspace.shape}; (slice, coil, kx, ky) or (slice, kx, ky) is needed")
    kspace = kspace if transpose else kspace.swapaxes(2, 3)
    found = Recording(kspace, label, centred=True, numbers=numbers, attrs=attrs)
    if text is not None:
        parsed = parse_header(text, label)
        first = parsed.encodings[0]
        found.attrs |= parsed.facts
        _geometry(found, first, label)
        if mask is not None and mask.shape == (kspace.shape[2],):
            mask = mask * _within_limits(first, kspace.shape[2])
    elif header:
        raise UserError(
            f"{label}: no ismrmrd_header, which states voxel size and readout oversampling; pass header=False to read without"
        )
    found.mask = mask
    low = attrs.get("num_low_frequency")
    if low is not None:
        # centred as by fastMRI's mask functions
        start = (kspace.shape[2] - int(low) + 1) // 2
        found.calibration = (start, start + int(low))
    return [found]


def write_fastmri(path: str | Path, scan: xr.Dataset, *, mask: bool = True) -> None:
    """Write a scan in fastMRI's layout, with the header that its voxel size gives; `mask` False leaves the mask out.

    Only one-dimensional masks fit this format; affine and noise samples have no place in it.
    """
    check(scan)
    if scan["mask"].ndim != 1:
        raise UserError(f"{label_of(scan)}: fastMRI files hold masks over ky alone, this one is over {scan['mask'].dims}")
    with replacing(path) as beside, h5py.File(beside, "w") as file:
        file["kspace"] = scan["kspace"].values.swapaxes(2, 3)
        if mask:
            file["mask"] = scan["mask"].values
        if voxel_size_of(scan) is not None:
            file["ismrmrd_header"] = _header(scan).encode()


def _geometry(found: Recording, first: Encoding, label: str) -> None:
    _, _, lines, width = found.kspace.shape
    if first.trajectory != "cartesian":
        raise UserError(f"{label}: its trajectory is {first.trajectory}, Cartesian k-space is needed")
    if first.encoded[2] > 1:
        raise UserError(
            f"{label}: 3-D encoded (matrix {' x '.join(map(str, first.encoded))}); slices encoded in 2-D are needed"
        )
    if first.encoded[0] != width:
        swapped = "; its axes are swapped: pass transpose=True" if first.encoded[0] == lines else ""
        raise UserError(f"{label}: the header states {first.encoded[0]} readout points, kspace has {width}{swapped}")
    x, y, z = first.encoded_mm
    found.voxel_size_mm = (z, y / lines, x / width)
    found.readout_keep = round(width * first.recon_mm[0] / x)


def _within_limits(first: Encoding, lines: int) -> NDArray[np.bool_]:
    """Lines that the scanner was to measure: the rest of the matrix is padding."""
    inside = np.ones(lines, bool)
    if "kspace_encoding_step_1" in first.limits:
        _, last, centre = first.limits["kspace_encoding_step_1"]
        start = lines // 2 - centre
        inside[: max(start, 0)] = False
        inside[start + last + 1 :] = False
    return inside


def _plain(value: Any) -> Any:
    value = value.item() if isinstance(value, np.generic) else value
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _header(scan: xr.Dataset) -> str:
    z, y, x = voxel_size_of(scan) or (1.0, 1.0, 1.0)
    lines, width = scan.sizes["ky"], scan.sizes["kx"]
    keep = int(scan.attrs.get("readout_keep", width))

    def space(name: str, points: int) -> str:
        return (
            f"<{name}><matrixSize><x>{points}</x><y>{lines}</y><z>1</z></matrixSize><fieldOfView_mm>"
            f"<x>{points * x!r}</x><y>{lines * y!r}</y><z>{z!r}</z></fieldOfView_mm></{name}>"
        )

    return (
        '<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>'
        f"{space('encodedSpace', width)}{space('reconSpace', keep)}<encodingLimits><kspace_encoding_step_1><minimum>0</minimum>"
        f"<maximum>{lines - 1}</maximum><center>{lines // 2}</center></kspace_encoding_step_1></encodingLimits>"
        "<trajectory>cartesian</trajectory></encoding></ismrmrdHeader>"
    )
