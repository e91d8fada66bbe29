"""What an acquisition looks like without any prior: numbers that a damaged or misdescribed scan changes."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow_mri.data.sampling import calibration_of
from sciflow_mri.physics.noise import mismatch
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.consistency import CONSISTENCY_FEATURES, consistency_features

__all__ = ["COVARIATES", "DATA_SCALE", "SCAN_FEATURES", "calibration", "covariates", "damped", "scan_features"]

DATA_SCALE = 0.36  # standard deviation of real and imaginary part of images of the prior, whose 95th percentile is 1
_EPSILON = 1e-4

COVARIATES = ("log acceleration", "its square", "log calibration lines", "log coils")
SCAN_FEATURES = (
    "noise level", "mismatch of calibration lines", "mismatch of other lines",
    "eigenvalue inside (median)", "eigenvalue inside (lowest tenth)", "eigenvalue outside",
    "residual of calibration lines", "residual of inner lines", "residual of outer lines", "relative residual of other lines",
    "worst line residual", "worst entry residual", "loudest entry beside the centre",
    "slope of line energies", "scatter of line energies", "loudest line", "quietest line", "centre of line energies",
    "slope along the readout", "scatter along the readout", "centre of the readout",
    "size of the object", "offset along y", "offset along x", "spread along y", "spread along x",
    "signal at the edges along y", "signal at the edges along x", "air", "peak",
    "noise in air", "ghosts", *CONSISTENCY_FEATURES,
)  # fmt: skip


def calibration(acquisition: Acquisition) -> tuple[tuple[int, int], tuple[int, int] | None]:
    """[first, last + 1] of the measured central lines, and of the columns where the mask is one of points."""
    lines, columns = calibration_of(acquisition.mask.cpu().numpy())
    return (int(lines[0]), int(lines[1])), None if columns is None else (int(columns[0]), int(columns[1]))


def covariates(acquisition: Acquisition) -> Tensor:
    """What the features may depend on and a damaged scan does not change: acceleration, calibration lines, coils."""
    (first, end), _ = calibration(acquisition)
    rate = torch.tensor(acquisition.acceleration).log()
    lines = torch.tensor(float(max(end - first, 1))).log()
    return torch.stack([rate, rate.square(), lines, torch.tensor(float(len(acquisition.maps))).log()]).double()


def damped(acquisition: Acquisition) -> Tensor:
    """(A'A + 1 / d^2)^-1 A'y (2, y, x): the posterior mean for white images of deviation d = .36."""
    operator = acquisition.operator
    return operator.normal_solve(operator.adjoint(acquisition.y[None]), DATA_SCALE**-2)[0]


def scan_features(acquisition: Acquisition) -> Tensor:
    r"""The numbers `SCAN_FEATURES` (F,), float64; ratios and energies as logarithms.

    Of the damped least-squares image x: residuals |y - A x|^2 / 2 per whitened entry by groups of lines, the share of their
    energy that x leaves unexplained, the worst line and entry (spikes, motion); of the maps: mismatch fractions and
    eigenvalues; of the energies of lines and readout columns: the straight line through their logarithms against log(1 + |k|),
    and deviations from it (a mask that claims other lines than were measured); of |x|: where the object is and whether it
    touches the edges (a wrong field of view). Then those of `consistency_features`. Raises `UserError` for a mask of points.
    """
    image = damped(acquisition)
    magnitude = image.norm(dim=0).double()
    found = [
        *_noise_and_maps(acquisition, magnitude),
        *_residuals(acquisition, image),
        *_energies(acquisition),
        *_object(magnitude),
        *_ghosts(image),
    ]
    alone = torch.stack([torch.as_tensor(value).double() for value in found])
    return torch.cat([alone, consistency_features(acquisition, calibration(acquisition)[0])])


def _noise_and_maps(acquisition: Acquisition, magnitude: Tensor) -> list[Tensor]:
    level = acquisition.sigma.double().square().mean().sqrt() / acquisition.scale
    lines, columns = calibration(acquisition)
    inside, others = mismatch(acquisition.kspace, acquisition.maps, lines, acquisition.sigma, columns=columns)
    eigenvalue = acquisition.eigenvalue.double()
    ordered = magnitude.flatten().argsort()
    bright = eigenvalue.flatten()[ordered[-len(ordered) // 3 :]]
    dark = eigenvalue.flatten()[ordered[: len(ordered) // 10]]
    return [
        _log(level), _log(torch.tensor(inside)), _log(torch.tensor(others)), _log((1 - bright.median()).clamp_min(0), 1e-3),
        _log((1 - bright.quantile(0.1)).clamp_min(0), 1e-3), dark.mean(),
    ]  # fmt: skip


def _residuals(acquisition: Acquisition, image: Tensor) -> list[Tensor]:
    operator, mask = acquisition.operator, acquisition.mask
    gap = acquisition.y - operator(image[None])[0]
    power = _full(acquisition, gap).abs().square().double() / 2  # (coil, ky, kx)
    where = _where(mask, power)
    (first, end), _ = calibration(acquisition)
    ky = torch.arange(power.shape[1], device=power.device)
    central = (ky >= first) & (ky < end)
    far = (ky - power.shape[1] // 2).abs()
    beside = far[where.any(1) & ~central]
    middle = beside.median() if len(beside) else torch.tensor(0, device=power.device)
    groups = [central, ~central & (far <= middle), ~central & (far > middle)]
    means = [_mean(power, where & group.unsqueeze(1)) for group in groups]
    unwhitened = operator.unwhiten(gap[None])[0]
    relative = _full(acquisition, unwhitened).abs().square().double()
    signal = acquisition.kspace.abs().square().double() / acquisition.scale**2
    other = where & ~central.unsqueeze(1)
    share = _mean(relative, other) / _mean(signal, other).clamp_min(1e-30)
    lines = (power * where).sum(2) / where.sum(1).clamp_min(1)
    radius = (ky - power.shape[1] // 2).square().unsqueeze(1) + (
        torch.arange(power.shape[2], device=power.device) - power.shape[2] // 2
    ).square()
    outer = where & (radius > (min(power.shape[1:]) // 8) ** 2)
    loud = signal[:, outer] / signal[:, outer].median(1, keepdim=True).values.clamp_min(1e-30)
    return [*(_log(value) for value in means), _log(share), _log(lines.max()), _log(power.max()), _log(loud.max())]


def _energies(acquisition: Acquisition) -> list[Tensor]:
    power = acquisition.kspace.abs().square().double()
    where = _where(acquisition.mask, power)
    found = []
    for axis in (1, 0):  # lines, then columns
        count = where.sum(axis)
        energy = (power * where).sum((0, axis + 1)) / count.clamp_min(1)
        there = count > 0
        place = torch.arange(len(energy), device=energy.device)[there] - len(energy) // 2
        value = _log(energy[there] / energy[there].max(), 1e-8)
        design = torch.stack([torch.ones_like(value), torch.log1p(place.abs().double())], 1)
        slope = torch.linalg.lstsq(design, value.unsqueeze(1)).solution
        gap = value - (design @ slope)[:, 0]
        centre = (energy[there] * place).sum() / energy[there].sum()
        found += [slope[1, 0], _log(gap.square().mean().sqrt())]
        found += [gap.max(), gap.min()] if axis == 1 else []
        found.append(centre)
    return found


def _object(magnitude: Tensor) -> list[Tensor]:
    height, width = magnitude.shape
    weight = magnitude.clamp(max=1.5)
    weight = weight / weight.sum()
    y = (torch.arange(height, device=weight.device) + 0.5) / height - 0.5
    x = (torch.arange(width, device=weight.device) + 0.5) / width - 0.5
    offset_y, offset_x = (weight.sum(1) * y).sum(), (weight.sum(0) * x).sum()
    spread_y, spread_x = (weight.sum(1) * (y - offset_y) ** 2).sum(), (weight.sum(0) * (x - offset_x) ** 2).sum()
    side = max(height // 24, 1), max(width // 24, 1)
    edges = torch.maximum(magnitude[: side[0]].mean(), magnitude[-side[0] :].mean())
    sides = torch.maximum(magnitude[:, : side[1]].mean(), magnitude[:, -side[1] :].mean())
    return [
        (magnitude > 0.4).double().mean(), offset_y, offset_x, _log(spread_y), _log(spread_x), _log(edges, 0.02),
        _log(sides, 0.02), _log(magnitude.quantile(0.1), 0.01), _log(magnitude.quantile(0.999) / magnitude.quantile(0.95)),
    ]  # fmt: skip


def _ghosts(image: Tensor) -> list[Tensor]:
    """Noise of the air, and the correlation with the image half a field of view away."""
    magnitude = image.norm(dim=0).double()
    air = magnitude[magnitude <= magnitude.quantile(0.15)].square().mean().sqrt()
    turned = magnitude.roll(magnitude.shape[0] // 2, 0)
    centred, other = magnitude - magnitude.mean(), turned - magnitude.mean()
    return [_log(air), (centred * other).mean() / centred.square().mean().clamp_min(1e-30)]


def _where(mask: Tensor, like: Tensor) -> Tensor:
    """(ky, kx)."""
    return mask if mask.dim() == 2 else mask.unsqueeze(1).expand(like.shape[1:])


def _full(acquisition: Acquisition, entries: Tensor) -> Tensor:
    """Measured entries in their places (coil, ky, kx)."""
    full = torch.zeros_like(acquisition.kspace)
    full[:, acquisition.mask] = entries.to(full.dtype)
    return full


def _mean(value: Tensor, where: Tensor) -> Tensor:
    return (value * where).sum() / (where.sum() * len(value)).clamp_min(1)


def _log(value: Tensor, floor: float = _EPSILON) -> Tensor:
    return torch.log(value.double() + floor)
