"""Noise of a scan: thermal, and what imperfect maps leave unexplained. All variances are of real and imaginary part *each*."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.physics.fourier import need_complex, to_image, to_kspace
from sciflow_mri.physics.maps import calibration_data

__all__ = ["line_excess", "line_variance", "mismatch", "thermal_sigma"]


def thermal_sigma(kspace: Tensor, mask: Tensor, calibration: Sequence[int] | None = None, *, fraction: float = 0.1) -> Tensor:
    r"""Standard deviation (coil,) of the thermal noise, of real and imaginary part each, from the measured entries alone.

    Two places hold little but noise: the ends of the readout in k-space, and, after an inverse transform along it, the air
    beside the object. In each, the quietest `fraction` of the columns is chosen with one half of the lines and the noise taken
    in the other half, and the other way round: noise that chose its own columns would be too quiet. Of both estimates of a coil
    the smaller is returned. Calibration lines, the loudest, are left out where at least 4 others are measured. Of a mask of
    points the outermost `fraction` is taken.

    With n entries in use the relative standard error is (4 n)^-1/2. Signal everywhere (an object that fills the field, k-space
    that was cropped within its signal) makes it too large: by half on a brain at 64 x 64 with 4 lines beside the calibration.

    Arguments:
        kspace: (coil, ky, kx), complex.
        mask: booleans (ky,), true for measured lines, or (ky, kx) for points.
        calibration: [first, last + 1], or None.

    Raises `UserError` if fewer than 2 lines are measured, or if a coil is silent there; `ValueError` with both shapes if the
    mask does not fit.

    >>> noise = torch.randn(1, 64, 64, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
    >>> bool((thermal_sigma(3 * noise, torch.ones(64, dtype=torch.bool)) / (3 * 0.5**0.5) - 1).abs() < 0.1)
    True
    """
    mask = _fitting(kspace, mask)
    if mask.dim() == 2:
        power = _outermost(kspace, mask, fraction)
    else:
        beside = mask.clone()
        if calibration is not None:
            beside[int(calibration[0]) : int(calibration[1])] = False
        lines = kspace[:, beside if int(beside.sum()) >= 4 else mask]
        if lines.shape[1] < 2:
            raise UserError(f"the noise cannot be estimated from {lines.shape[1]} measured line: give noise samples or sigma")
        power = torch.minimum(_quietest(lines, fraction), _quietest(_readout_image(lines), fraction))
    if not bool(((power > 0) & power.isfinite()).all()):
        raise UserError(
            "the noise cannot be estimated: measured entries are not finite, or exactly zero at the ends of the readout (zero-"
            "filled or filtered k-space): give noise samples or sigma"
        )
    return (power / 2).sqrt()


def mismatch(
    kspace: Tensor, maps: Tensor, calibration: Sequence[int], sigma: Tensor, *, columns: Sequence[int] | None = None
) -> tuple[float, float]:
    r"""Which fraction of the energy of k-space maps S cannot explain, without noise: (of calibration lines, of other lines).

    With m the coil images of the calibration lines alone and P = 1 - S S' / S'S, pixel by pixel (no x explains P m),

        f_calibration = |M F P m|^2 / |m|^2,    f_others = |P m|^2 / |m|^2,

    each less the part (coils - 1) / coils of thermal noise that P lets through. S was made of the calibration lines, so they
    fit better than others do. On simulated brains and a real one (64 and 128 lines, 4 to 10 of calibration) f_others was
    between a third and five times the true fraction, which was much the same for all lines beside the calibration.

    Arguments:
        kspace: (coil, ky, kx), of which the calibration lines alone are looked at.
        maps: S (coil, y, x); zero where nothing is to be explained. Their length does not matter.
        sigma: (coil,) of real and imaginary part each.

    Raises `UserError` if the calibration is damaged, `ValueError` if the maps do not fit.
    """
    if maps.shape != kspace.shape:
        raise ValueError(f"the maps have shape {tuple(maps.shape)} and k-space {tuple(kspace.shape)}, expected the same")
    block = calibration_data(kspace, calibration, columns)
    rows, wide = slice(*map(int, calibration)), slice(*(map(int, columns) if columns is not None else (0, kspace.shape[2])))
    alone = torch.zeros_like(kspace)
    alone[:, rows, wide] = block
    image = to_image(alone)
    power = maps.abs().square().sum(0)  # given maps need not have length 1
    explained = (maps.conj() * image).sum(0) / torch.where(power > 0, power, 1)
    unexplained = image - maps * explained
    inside = _energy(to_kspace(unexplained)[:, rows, wide])
    thermal = 2.0 * float(sigma.double().square().mean()) * block.numel()
    passed = thermal * (len(kspace) - 1) / len(kspace)
    signal = max(_energy(block) - thermal, 1e-12 * _energy(block))
    return max(inside - passed, 0.0) / signal, max(_energy(unexplained) - passed, 0.0) / signal


def line_variance(
    kspace: Tensor,
    maps: Tensor,
    mask: Tensor,
    calibration: Sequence[int],
    sigma: Tensor,
    *,
    columns: Sequence[int] | None = None,
) -> Tensor:
    r"""Variance (coil, ky) of the measured entries of each line about F S x, of real and imaginary part each:

        v[c, l] = sigma_c^2 + f_l (mean_kx |k[c, l]|^2 / 2 - sigma_c^2)_+,

    with the fractions f of `mismatch`: that of the calibration lines for them, the other for the others. Lines that are not
    measured have sigma_c^2. Wrong maps move energy between coils in proportion to the energy that is there; without this part
    strong lines at low frequencies are believed to the last digit.

    Arguments:
        kspace: (coil, ky, kx), complex; unmeasured entries are not looked at.
        maps, calibration, sigma, columns: see `mismatch`.
        mask: booleans (ky,) or (ky, kx).

    Raises as `mismatch`, and `ValueError` with both shapes if the mask does not fit.

    >>> kspace = torch.ones(2, 8, 8, dtype=torch.complex64)
    >>> maps = torch.full((2, 8, 8), 0.5**0.5, dtype=torch.complex64)  # they explain it
    >>> line_variance(kspace, maps, torch.ones(8, dtype=torch.bool), (2, 6), torch.tensor([0.1, 0.2]))[:, 0]
    tensor([0.0100, 0.0400])
    """
    mask = _fitting(kspace, mask)
    inside, others = mismatch(kspace, maps, calibration, sigma, columns=columns)
    fraction = torch.full(mask.shape[:1], others, dtype=kspace.real.dtype, device=kspace.device)
    fraction[int(calibration[0]) : int(calibration[1])] = inside
    thermal = sigma.to(kspace.real.dtype).square().unsqueeze(1)
    return thermal + fraction * line_excess(kspace, mask, sigma)


def line_excess(kspace: Tensor, mask: Tensor, sigma: Tensor) -> Tensor:
    """(mean_kx |k[c, l]|^2 / 2 - sigma_c^2)_+ (coil, ky) over the measured entries of each line: its power beside the noise.

    Arguments: as `line_variance`. Raises `ValueError` with both shapes if the mask does not fit.
    """
    mask = _fitting(kspace, mask)
    measured = mask if mask.dim() == 2 else mask.unsqueeze(1).expand(kspace.shape[1:])
    power = torch.where(measured, kspace, 0).abs().square().sum(2) / measured.sum(1).clamp_min(1)
    return (power / 2 - sigma.to(kspace.real.dtype).square().unsqueeze(1)).clamp_min(0)


def _fitting(kspace: Tensor, mask: Tensor) -> Tensor:
    if need_complex("k-space", kspace, 3).dim() != 3 or mask.shape not in (kspace.shape[1:2], kspace.shape[1:]):
        raise ValueError(
            f"the mask has shape {tuple(mask.shape)} and k-space {tuple(kspace.shape)}, expected (ky,) or (ky, kx) and "
            "(coil, ky, kx)"
        )
    return mask.bool()


def _readout_image(lines: Tensor) -> Tensor:
    return torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(lines, dim=-1), norm="ortho"), dim=-1)


def _quietest(lines: Tensor, fraction: float) -> Tensor:
    """Mean |.|^2 (coil,) of the quietest columns of (coil, line, column): chosen in every other line, measured in the rest."""
    power = lines.abs().square()
    number = max(2, round(fraction * lines.shape[2]))
    halves = []
    for first in (0, 1):
        chosen = power[:, first::2].sum((0, 1)).argsort()[:number]
        halves.append(power[:, 1 - first :: 2].index_select(2, chosen).mean((1, 2)))
    return (halves[0] + halves[1]) / 2


def _outermost(kspace: Tensor, mask: Tensor, fraction: float) -> Tensor:
    """Mean |k|^2 (coil,) of the measured points that are farthest from the centre, in units of the half widths."""
    height, width = mask.shape
    down = (torch.arange(height, device=mask.device) - height // 2).abs() / height
    across = (torch.arange(width, device=mask.device) - width // 2).abs() / width
    distance = (down.square().unsqueeze(1) + across.square())[mask]
    number = max(2, round(fraction * len(distance)))
    return kspace[:, mask].abs().square().index_select(1, distance.argsort(descending=True)[:number]).mean(1)


def _energy(value: Tensor) -> float:
    return float(value.abs().double().square().sum())
