"""Files of raw scans to `xarray`, whatever their format."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import reason
from sciflow_mri.data.assemble import Centre, assemble
from sciflow_mri.data.formats import FORMATS, bart, kind_of
from sciflow_mri.data.identity import sha256_of
from sciflow_mri.data.recording import Recording

__all__ = ["read"]


def read(
    path: str | Path,
    *,
    format: str | None = None,
    slices: Sequence[int] | None = None,
    coils: Sequence[int] | None = None,
    mask: NDArray | None = None,
    centre: Centre = "auto",
    transpose: bool = False,
    axes: str | None = None,
    header: bool = True,
    average: int | None = None,
) -> list[xr.Dataset]:
    """The scans of a file: one for all its slices with the same size, coils and sampling mask.

    Arguments:
        path: fastMRI HDF5, ISMRMRD/MRD HDF5, BART `.cfl`/`.hdr`, NumPy `.npy`/`.npz`.
        format: "fastmri", "mrd", "bart" or "numpy"; without it, by ending and content.
        slices, coils: numbers of those to keep.
        mask: what was measured, (ky,) or (ky, kx) of the file (after `transpose`), in the place of its own statement; it must
            agree with the zeros.
        centre: index (ky, kx) of the zero frequency, which is moved to N//2; "peak": where the energy is largest; "middle":
            it is at N//2 already; "auto": "middle" for formats that say so (fastMRI, MRD, our own .npz), else "peak".
        transpose: swap ky and kx of the file.
        axes: NumPy only: a name for each axis, for example "ky kx coil".
        header: fastMRI only: False reads files without `ismrmrd_header`, voxel size and oversampling are unknown then.
        average: MRD only: the number of the one average to read, where lines were averaged unequally often.

    Returns a list of the `Dataset` described by `make_scan`, with the attributes `source`, `source_sha256` and `format`.

    Raises `UserError`, naming the file, for whatever cannot be read, is not finite, contradicts itself or was not measured.

    >>> import numpy as np, tempfile
    >>> file = Path(tempfile.mkdtemp()) / "scan.npy"
    >>> kspace = np.ones((2, 4, 6), np.complex64)
    >>> kspace[:, 1] = 0
    >>> np.save(file, kspace)
    >>> [scan] = read(file)
    >>> dict(scan.sizes), scan["mask"].values.tolist(), scan.attrs["calibration"]
    ({'slice': 1, 'coil': 2, 'ky': 4, 'kx': 6}, [True, False, True, True], [2, 4])
    """
    path = Path(path)
    if format is not None and format not in FORMATS:
        raise UserError(f"format is {format!r}; one of {', '.join(FORMATS)} is needed")
    try:
        kind = format or kind_of(path)
        if axes is not None and kind != "numpy":
            raise UserError(f"{path}: axes={axes!r} names the axes of NumPy files, this is {kind}")
        if kind == "fastmri":
            # the only format whose header and mask speak of named axes, so that its reader must know
            recordings = _fastmri(path, header=header, slices=slices, transpose=transpose)
            transpose = False
        else:
            recordings = _recordings(kind, path, axes=axes, average=average)
        attrs = {"format": kind, **_hashes(kind, path)}
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from None
    return [
        scan
        for one in recordings
        for scan in assemble(one, slices=slices, coils=coils, mask=mask, centre=centre, transpose=transpose, attrs=attrs)
    ]


def _hashes(kind: str, path: Path) -> dict[str, Any]:
    if kind != "bart":
        return {"source_sha256": sha256_of(path)}
    data, text = bart.sources(path)
    return {"source_sha256": sha256_of(data), "header_sha256": sha256_of(text)}


def _recordings(kind: str, path: Path, *, axes: str | None, average: int | None) -> list[Recording]:
    if kind == "bart":
        return bart.read_bart(path, bart.sources(path)[0].name)
    if kind == "numpy":
        from sciflow_mri.data.formats.numpy_files import read_numpy

        return read_numpy(path, path.name, axes)
    from sciflow_mri.data.formats.mrd import read_mrd

    return read_mrd(path, path.name, average=average)


def _fastmri(path: Path, *, header: bool, slices: Sequence[int] | None, transpose: bool) -> list[Recording]:
    from sciflow_mri.data.formats.fastmri import read_fastmri

    return read_fastmri(path, path.name, header=header, slices=slices, transpose=transpose)
