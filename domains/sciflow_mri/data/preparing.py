"""A scan made ready for reconstruction, in the one order that is right."""

from __future__ import annotations

import logging
from typing import Literal

import xarray as xr
from numpy.typing import NDArray

from sciflow_mri.data.noise import prewhiten as whitened
from sciflow_mri.data.oversampling import remove_oversampling
from sciflow_mri.data.retrospective import crop_kspace
from sciflow_mri.data.retrospective import undersample as undersampled
from sciflow_mri.data.sampling import require_calibration
from sciflow_mri.data.scan import check, label_of

__all__ = ["prepare"]

log = logging.getLogger(__name__)


def prepare(
    scan: xr.Dataset,
    *,
    oversampling: float | bool | Literal["auto"] | None = "auto",
    prewhiten: bool | Literal["auto"] = "auto",
    noise: NDArray | None = None,
    size: int | tuple[int, int] | None = None,
    undersample: NDArray | None = None,
    minimum_calibration: int = 4,
) -> xr.Dataset:
    """Readout oversampling removed, coils prewhitened, k-space cropped and undersampled if asked, calibration lines required.

    Arguments:
        scan: from `sciflow_mri.data.read`: centred, checked, with its mask.
        oversampling: a factor such as 2; "auto": what the file states, where it does and where that is possible; True: what it
            states, or refuse; None or False: leave it.
        prewhiten: "auto": where there are noise samples; True: refuse a scan without them.
        noise: noise samples (coil, sample) from elsewhere.
        size: crop k-space to n x n or (ky, kx) points around its centre; labelled in `retrospective`.
        undersample: bool (ky,) or (ky, kx) after the crop: measured entries to keep; labelled in `retrospective`.
        minimum_calibration: fewest fully sampled lines around the centre.

    Returns a new `Dataset`. Raises `UserError` for what each step refuses, and without calibration lines.

    >>> import numpy as np
    >>> from sciflow_mri.data import make_scan
    >>> full = make_scan(np.ones((1, 2, 9, 16), np.complex64), mask=np.ones(9, bool))
    >>> scan = prepare(full, oversampling=2, size=8, undersample=np.array([1, 0, 1, 1, 1, 1, 0, 1], bool))
    >>> dict(scan.sizes), scan.attrs["calibration"], scan.attrs["oversampling_removed"]
    ({'slice': 1, 'coil': 2, 'ky': 8, 'kx': 8}, [2, 6], 1)
    >>> scan.attrs["retrospective"]
    'k-space cropped from 9 x 8 to 8 x 8 (ky, kx); undersampled to 6 of 8 lines'
    """
    check(scan)
    if oversampling == "auto":
        keep = scan.attrs.get("readout_keep")
        if keep is not None and scan["mask"].ndim == 1:
            scan = remove_oversampling(scan)
        elif keep is not None and keep < scan.sizes["kx"]:
            log.warning("%s: its readout oversampling is kept, for kx is not fully sampled", label_of(scan))
    elif oversampling:
        scan = remove_oversampling(scan, None if oversampling is True else float(oversampling))
    if prewhiten is True or noise is not None or (prewhiten == "auto" and "noise" in scan):
        scan = whitened(scan, noise)
    if size is not None:
        scan = crop_kspace(scan, size)
    if undersample is not None:
        scan = undersampled(scan, undersample)
    first, last = scan.attrs["calibration"]
    require_calibration((first, last), scan.sizes["ky"], minimum_calibration, label_of(scan))
    return scan
