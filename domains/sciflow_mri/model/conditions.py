"""What an amortised posterior is told of a scan: images and numbers that follow from its own measured lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.physics.maps import sensitivity_maps
from sciflow_mri.physics.noise import line_variance, thermal_sigma
from sciflow_mri.physics.sense import Sense

__all__ = ["DATA_SCALE", "IMAGES", "LEVELS", "SPREAD", "Measured", "condition_of", "measured_operator", "spectrum"]

DATA_SCALE = 0.35  # standard deviation of real and imaginary parts of images whose 95th percentile is 1
IMAGES, LEVELS = 6, 2  # images of the condition, and numbers beside them
SPREAD = 4  # which image is the expected deviation
_CORNER = 0.6  # of the power spectrum, in cycles per field of view
_PERCENTILE, _DAMPING = 0.95, 1e-2
_TYPICAL = -4.0  # logarithm of a noise level in units of the prior


class Measured(NamedTuple):
    """`condition` of one scan: see `condition_of`; the image it speaks of = image of the operator / scale."""

    condition: dict[str, Tensor]
    scale: float


def spectrum(lines: int) -> Tensor:
    """P (lines,), float64, centred: power of images along phase encoding, 1 on average; 1 / (1 + (k / 0.6)^2) for k cycles.

    >>> found = spectrum(64)
    >>> bool(found.argmax() == 32), round(float(found.mean()), 3)
    (True, 1.0)
    """
    k = torch.arange(lines, dtype=torch.float64) - lines // 2
    power = 1 / (1 + (k / _CORNER).square())
    return power / power.mean()


def condition_of(operator: Sense, y: Tensor) -> Measured:
    r"""The condition of a whitened operator A and its data y (*operator.range), in units in which the image is about 1:

        "images" (6, H, W): m (2), the zero-filled image (2), the deviation e / d (1), the mask of each line (1);
        "level" (2,): 4 + log of the noise on the quietest and on the loudest measured line, mean over coils,

    with m = (A'A + Q)^-1 A'y and e^2 the diagonal of (A'A + Q)^-1: mean and deviation under independent normal image columns of
    covariance Q^-1 = d^2 F' P F along phase encoding, P the `spectrum` and d = 0.35. So m is a damped SENSE image whose damping
    is that of images, and e says where it is to be believed. The unit is the 95th percentile of the magnitude of an image that
    is damped alike in all directions, whatever the unit of the operator is. Nothing but the scan enters.

    Raises `UserError` for a mask of points, an operator without variance or an empty image, `ValueError` if y does not fit.
    """
    if not operator.by_lines or operator.variance is None:
        what = "a mask of points" if not operator.by_lines else "no noise variance"
        raise UserError(f"the operator has {what}: an amortised posterior is trained for masks of lines with known noise")
    y = y.unsqueeze(0)
    normal, back = _normal(operator), operator.adjoint(y)
    strength = _pairs(normal @ _columns(back)).norm() / back.norm()  # the largest eigenvalue, about
    eye = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    plain = _solved(torch.linalg.cholesky_ex(normal + _DAMPING * strength * eye)[0], back)
    scale = float(torch.quantile(plain.norm(dim=1).flatten(), _PERCENTILE))
    if not 0 < scale < float("inf"):
        raise UserError("the image of the measured lines is zero or not finite: there is nothing to reconstruct")
    fourier = fourier_matrix(len(eye), normal.dtype, normal.device)
    weights = 1 / ((DATA_SCALE * scale) ** 2 * spectrum(len(eye)).to(normal))
    factor = torch.linalg.cholesky(normal + (fourier.mH * weights) @ fourier)
    damped, zero_filled = _solved(factor, back)[0], operator.zero_filled(operator.unwhiten(y))[0]
    spread = torch.cholesky_inverse(factor).diagonal(dim1=-2, dim2=-1).real.T.clamp_min(0).sqrt() / DATA_SCALE
    lines = operator.mask.to(damped.dtype).unsqueeze(1).expand(damped.shape[1:])
    noise = 0.5 * (operator.variance[:, operator.mask] / scale**2).log().mean(0)
    images = torch.cat([torch.cat([damped, zero_filled, spread.unsqueeze(0)]) / scale, lines.unsqueeze(0)])
    return Measured({"images": images, "level": torch.stack([noise.min(), noise.max()]) - _TYPICAL}, scale)


def measured_operator(kspace: Tensor, mask: Tensor, calibration: Sequence[int]) -> tuple[Sense, Tensor]:
    """The whitened operator, on images of the scan, and the data of measured k-space (coil, ky, kx), as `acquire` has them.

    Maps, noise and mismatch are estimated from the measured lines alone.

    Arguments:
        mask: booleans (ky,).
        calibration: [first, last + 1] of the calibration lines.

    Raises `UserError` where they cannot be estimated.
    """
    maps, _ = sensitivity_maps(kspace, calibration)
    thermal = thermal_sigma(kspace, mask, calibration)
    operator = Sense(maps, mask, line_variance(kspace, maps, mask, calibration, thermal))
    return operator, operator.whiten(operator.measured(kspace.unsqueeze(0)))[0]


def _normal(operator: Sense) -> Tensor:
    """A'A of each image column (W, H, H)."""
    maps, lines = operator.maps, fourier_matrix(operator.maps.shape[1], operator.maps.dtype, operator.maps.device)
    lines = lines[operator.mask]
    assert operator.variance is not None
    precision = 1 / operator.variance[:, operator.mask]
    found = maps.new_zeros(maps.shape[2], maps.shape[1], maps.shape[1])
    for coil, weights in zip(maps, precision, strict=True):  # (W, H, H) numbers at a time
        columns = coil.T
        found += columns.conj().unsqueeze(2) * ((lines.mH * weights) @ lines) * columns.unsqueeze(1)
    return found


def _solved(factor: Tensor, r: Tensor) -> Tensor:
    return _pairs(torch.cholesky_solve(_columns(r), factor))


def _columns(x: Tensor) -> Tensor:
    """(1, 2, H, W) -> (W, H, 1)."""
    return torch.complex(x[0, 0], x[0, 1]).T.unsqueeze(2)


def _pairs(columns: Tensor) -> Tensor:
    image = columns.squeeze(2).T
    return torch.stack([image.real, image.imag]).unsqueeze(0)
