"""What a fully sampled scan says of its own image, and how far a result is from it."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy.stats import rankdata

from sciflow.errors import UserError
from sciflow_mri.data.scan import label_of
from sciflow_mri.metrics import match_scale, psnr, ssim
from sciflow_mri.physics.fourier import to_image
from sciflow_mri.physics.maps import sensitivity_maps
from sciflow_mri.physics.masks import calibration_block

__all__ = ["Evaluation", "Reference", "evaluate", "reference"]

_LINES, _KERNEL, _SUPPORT = 24, 6, 0.8


class Reference(NamedTuple):
    """Magnitude (y, x) of the combined full data, and where results are compared with it (y, x)."""

    truth: NDArray[np.float64]
    support: NDArray[np.bool_]


class Evaluation(NamedTuple):
    """`figures` by name, and the truth (y, x) in the units of the result."""

    figures: dict[str, float]
    truth: NDArray[np.float64]


def reference(scan: xr.Dataset, slice: int = 0) -> Reference:
    """The image of a fully sampled scan, combined by maps from 24 central lines and columns (fewer if there are fewer).

    The support is where the eigenvalue of these maps is above 0.8.

    Raises `UserError` if the scan is not fully sampled or has no such slice.
    """
    label = label_of(scan)
    missing = int((~scan["mask"].values).sum())
    if missing:
        unit = "lines" if scan["mask"].ndim == 1 else "points"
        raise UserError(f"{label}: is no truth: {missing} of {scan['mask'].size} {unit} were not measured; give the full scan")
    if not 0 <= slice < scan.sizes["slice"]:
        raise UserError(f"{label}: has no slice {slice}, it has {scan.sizes['slice']}, numbered from 0")
    kspace = torch.from_numpy(np.ascontiguousarray(scan["kspace"].values[slice]))
    side = min(_LINES, *kspace.shape[1:])
    kernel = min(_KERNEL, side // 2)
    maps, eigenvalue = sensitivity_maps(kspace, calibration_block(kspace.shape[1], side), window=side, kernel=(kernel, kernel))
    combined = (maps.conj() * to_image(kspace)).sum(0)
    return Reference(combined.abs().double().numpy(), (eigenvalue > _SUPPORT).numpy())


def evaluate(images: Any, truth: Reference) -> Evaluation:
    """Mean, standard deviation and intervals of one slice (group `images` of `result_tree`) against a truth, over its support.

    Magnitudes, brought together by one least-squares scale. Figures: `PSNR`, `SSIM` of the mean; `PSNR zero-filled`, `SSIM
    zero-filled`; `coverage 50 %`, ...: share of pixels whose interval holds the truth; `rank correlation`: Spearman's, of the
    standard deviation with the error.

    Raises `UserError` if shapes differ.
    """
    mean, inside = np.abs(images["mean"].values), truth.support
    matched = match_scale(mean, truth.truth, inside)
    power = float(mean.ravel() @ mean.ravel())
    scale = float(matched.ravel() @ mean.ravel()) / power if power else 1.0
    found = {"PSNR": psnr(mean, truth.truth, inside), "SSIM": ssim(mean, truth.truth, inside)}
    zero = images["zero_filled"].values
    found |= {"PSNR zero-filled": psnr(zero, truth.truth, inside), "SSIM zero-filled": ssim(zero, truth.truth, inside)}
    target = truth.truth / scale
    for level in images["level"].values:
        low, high = images["interval"].sel(level=level).values
        found[f"coverage {100 * level:.0f} %"] = float(((low <= target) & (target <= high))[inside].mean())
    error = np.abs(mean - target)[inside]
    found["rank correlation of std and error"] = _rank_correlation(images["std"].values[inside], error)
    return Evaluation(found, target)


def _rank_correlation(a: NDArray, b: NDArray) -> float:
    x, y = (rankdata(values) - (len(values) + 1) / 2 for values in (a, b))
    both = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / both if both else 0.0
