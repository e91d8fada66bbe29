"""Readout oversampling: twice the field of view along the readout, of which half is air."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.geometry import shift_origin
from sciflow_mri.data.scan import affine_of, label_of, remake

__all__ = ["crop_readout", "remove_oversampling"]


def crop_readout(kspace: NDArray, keep: int) -> NDArray[np.complex64]:
    """k-space of the middle `keep` pixels along the last axis: unitary transforms, so white noise keeps its size."""
    width = kspace.shape[-1]
    first = width // 2 - keep // 2
    image = np.fft.ifft(np.fft.ifftshift(kspace, axes=-1), axis=-1, norm="ortho")
    image = np.fft.fftshift(image, axes=-1)[..., first : first + keep]
    back = np.fft.fft(np.fft.ifftshift(image, axes=-1), axis=-1, norm="ortho")
    return np.fft.fftshift(back, axes=-1).astype(kspace.dtype)


def remove_oversampling(scan: xr.Dataset, factor: float | None = None) -> xr.Dataset:
    """The scan with the field of view along the readout cropped in image space, voxels unchanged.

    Arguments:
        factor: field of view as acquired over the one wanted, for example 2; without it, what the file said.

    Sets `oversampling_removed` to 1. Raises `UserError` where the readout is not whole (asymmetric echo, two-dimensional
    masks): a crop in image space would smear what is missing over the measured points.
    """
    label, width = label_of(scan), scan.sizes["kx"]
    if factor is None:
        if "readout_keep" not in scan.attrs:
            raise UserError(
                f"{label}: its file does not state the readout oversampling; pass oversampling=2, or False for none"
            )
        keep = int(scan.attrs["readout_keep"])
    else:
        keep = round(width / factor) if factor > 0 else 0
    if not 1 <= keep <= width:
        raise UserError(f"{label}: {keep} of {width} readout pixels would be left; an oversampling of 1 to {width} is needed")
    if scan["mask"].ndim == 2 and keep < width:
        raise UserError(
            f"{label}: readout oversampling cannot be removed, for kx is not fully sampled (asymmetric echo or a mask in two "
            "dimensions); pass oversampling=False to keep it"
        )
    affine = affine_of(scan)
    mask = scan["mask"].values
    kspace = crop_readout(scan["kspace"].values, keep) if keep < width else scan["kspace"].values
    if mask.ndim == 1:
        kspace = kspace * mask[:, None]
    changed = remake(
        scan,
        kspace,
        mask,
        calibration=scan.attrs["calibration"],
        affine=None if affine is None else shift_origin(affine, (width // 2 - keep // 2, 0, 0)),
        attrs={"oversampling_removed": 1},
    )
    changed.attrs.pop("readout_keep", None)
    return changed
