"""Noise prewhitening: coils mixed so that their noise is independent and of unit size."""

from __future__ import annotations

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.recording import as_complex
from sciflow_mri.data.scan import label_of, remake

__all__ = ["noise_covariance", "prewhiten"]


def noise_covariance(noise: NDArray[np.complex64], label: str = "noise") -> NDArray[np.complex128]:
    r"""\(\Psi = \frac{1}{2n} \sum_j \eta_j \eta_j^H\) of noise samples (coil, sample), of REAL AND IMAGINARY PART EACH.

    Returns (coil, coil), complex128. The mean is not taken off: noise has none.

    Raises `UserError` for fewer samples than ten per coil, for samples that are not finite, for a coil without noise
    and for coils that are copies of each other.

    >>> noise_covariance(np.array([[1 + 1j, 1 - 1j, -1 + 1j, -1 - 1j] * 3])).real.tolist()
    [[1.0]]
    """
    coils, samples = noise.shape
    if samples < 10 * coils:
        raise UserError(
            f"{label}: {samples} noise samples for {coils} coils; at least {10 * coils} are needed for a covariance"
        )
    bad = int((~np.isfinite(noise)).sum())
    if bad:
        raise UserError(f"{label}: {bad} noise samples are NaN or infinite; leave them out or pass prewhiten=False")
    wide = noise.astype(np.complex128)
    covariance = wide @ wide.conj().T / (2 * samples)
    size = np.sqrt(np.diag(covariance).real)
    if not size.all():
        raise UserError(f"{label}: the noise samples of coil {int(np.argmin(size))} are all zero; leave out coil or noise")
    if np.linalg.eigvalsh(covariance / np.outer(size, size))[0] < 1e-6:
        raise UserError(f"{label}: the noise of some coils is a copy of others; leave out coils or pass prewhiten=False")
    return covariance


def prewhiten(scan: xr.Dataset, noise: NDArray | None = None) -> xr.Dataset:
    r"""The scan with \(k' = L^{-1} k\), \(L L^H = \Psi\): noise of standard deviation 1 in real and imaginary part each.

    Arguments:
        noise: (coil, sample), without it those of the scan.

    Sets `prewhitened` to 1 and `noise_sigma` to 1.0. Raises `UserError` without noise samples. Source: Pruessmann et al.,
    "Advances in sensitivity encoding with arbitrary k-space trajectories", 2001, doi 10.1002/mrm.1241.
    """
    label = label_of(scan)
    if noise is None:
        if "noise" not in scan:
            raise UserError(f"{label}: prewhitening needs noise samples and the file has none; pass noise (coil, sample)")
        noise = scan["noise"].values
    noise = as_complex(np.asarray(noise), label, "noise")
    if noise.ndim != 2 or noise.shape[0] != scan.sizes["coil"]:
        raise UserError(f"{label}: noise has shape {noise.shape}, ({scan.sizes['coil']} coils, samples) is needed")
    lower = np.linalg.cholesky(noise_covariance(noise, label))
    inverse = np.linalg.inv(lower).astype(np.complex64)
    kspace = np.einsum("dc,scyx->sdyx", inverse, scan["kspace"].values)
    return remake(
        scan,
        kspace,
        scan["mask"].values,
        noise=inverse @ noise,
        calibration=scan.attrs["calibration"],
        attrs={"prewhitened": 1, "noise_sigma": 1.0},
    )
