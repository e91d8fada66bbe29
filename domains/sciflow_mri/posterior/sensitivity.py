"""How much the image depends on the maps: the same data with maps of other settings, against the posterior's own width."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow_mri.physics.maps import sensitivity_maps
from sciflow_mri.physics.noise import line_variance, mismatch
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.features import calibration
from sciflow_mri.posterior.joint import refine_maps
from sciflow_mri.posterior.rough import rough_draws

__all__ = ["other_maps", "sensitivity_tests", "with_maps"]

_LEAST = 4  # calibration lines that still make maps


def other_maps(acquisition: Acquisition) -> Iterator[tuple[str, Tensor]]:
    """Maps (coil, y, x) of the same k-space: by a smaller kernel, and by the central half of the calibration lines, 4 or more.

    Estimated again from the measured lines, whatever maps the acquisition has.
    """
    (first, end), columns = calibration(acquisition)
    lines = end - first
    tall = min(max(lines // 2, 3), 6, lines)
    options: dict[str, Any] = {"columns": columns}
    if lines >= 2:
        smaller = (max(tall - 1, 2), 5)
        found = sensitivity_maps(acquisition.kspace, (first, end), kernel=smaller, **options)[0]
        yield f"kernel {smaller[0]} x {smaller[1]}", found
    half = max(lines // 2, _LEAST)
    if half < lines:
        centre = acquisition.kspace.shape[1] // 2
        block = max(first, min(centre - half // 2, end - half))
        yield f"{half} calibration lines", sensitivity_maps(acquisition.kspace, (block, block + half), **options)[0]


def with_maps(acquisition: Acquisition, maps: Tensor) -> Acquisition:
    """The same data under other maps of calibration lines, with the noise that these do not explain.

    Raises `UserError` if they do not fit.
    """
    lines, columns = calibration(acquisition)
    if maps.shape != acquisition.maps.shape:
        raise UserError(f"{acquisition.label}: maps {tuple(maps.shape)} in place of {tuple(acquisition.maps.shape)}")
    maps = maps.to(acquisition.maps)
    variance = line_variance(acquisition.kspace, maps, acquisition.mask, lines, acquisition.sigma, columns=columns)
    return acquisition.with_maps(maps, variance)


def sensitivity_tests(
    acquisition: Acquisition, prior: Any, *, std: Tensor | None = None, rows: int = 4, limit: float = 1.0,
    unexplained: float = 0.15, seed: int = 0,
) -> list[Test]:  # fmt: skip
    r"""Tests of the maps S.

    1. What S leaves unexplained of the calibration lines: |m - S S' m|^2 / |m|^2 of their coil images m, less noise. Maps
       of other coils or of another scan leave most of it; it needs no prior.
    2. The change of the image by each of `other_maps` S':

        rms over the object of (mean_r |x_r(S')| - mean_r |x_r(S)|) / rms of the standard deviation,

       with `rows` rough draws x_r that share their random numbers (a short annealing, good to compare settings), and the
       smaller of the standard deviations under S and S': wrong maps widen the posterior, which must not excuse them. The
       object is where the magnitude is above .2. Another kernel fails above the limit; half of the calibration lines, which
       make worse maps than all of them, warn. Where maps were refined with the image, the others are too, with other random
       numbers: the test is then whether the refined maps depend on where they began.

    Arguments:
        prior: the flow over (2, y, x).
        std: posterior standard deviation of the magnitude (y, x) in units of the prior, instead of that of the rough draws.
        limit: of the change, one deviation. On five simulated scans of a head with R = 4 half of the lines made changes of
            .3 to .7, and of 1.2 on the one whose error was 2.4 times its stated deviation, where the head touches both ends
            of the field of view: maps of few lines are periodic, and wrong there. (Refined maps change the embedded scan by
            .2 and .4 of it; how far others do has not been measured.)
        unexplained: of the share. Maps of other coils are far above it (`tests/domains/mri/test_shipped_prior.py`).

    Raises `UserError` as `sensitivity_maps`, and for a prior of another size.
    """
    lines, columns = calibration(acquisition)
    _, share = mismatch(acquisition.kspace, acquisition.maps, lines, acquisition.sigma, columns=columns)
    own = _magnitudes(acquisition, prior, rows, seed)
    width = own.std(0) if std is None else std.to(own)
    if width.shape != own.shape[1:]:
        raise ValueError(f"std has shape {tuple(width.shape)}, the image {tuple(own.shape[1:])}")
    where = own.mean(0) > 0.2
    first = acquisition.calibrated or acquisition
    found = []
    for name, maps in other_maps(first):
        changed = with_maps(first, maps)
        changed = (
            changed if acquisition.calibrated is None else refine_maps(changed, prior, seed=seed, name="maps from elsewhere")
        )
        other = _magnitudes(changed, prior, rows, seed)
        size = min(_rms(width[where]), _rms(other.std(0)[where]))
        change = _rms((other.mean(0) - own.mean(0))[where])
        relative = 100 * change / _rms(own.mean(0)[where])
        text = f"{relative:.1f} % of the image; in units of its standard deviation over the object"
        severity = "fail" if name.startswith("kernel") else "warn"
        found.append(
            Test(f"sensitivity to maps: {name}", change / max(size, 1e-12), limit, "<=", severity=severity, description=text)
        )
    return [
        Test("calibration explained by maps", share, unexplained, "<=",
             description="share of the energy of calibration lines that the maps leave unexplained, less noise"),
        *found,
        *([] if acquisition.calibrated is None else [_moved(acquisition.calibrated.maps, acquisition.maps, where)]),
    ]  # fmt: skip


def _moved(before: Tensor, after: Tensor, where: Tensor) -> Test:
    sine = (1 - (before.conj() * after).sum(0).abs().square()).clamp_min(0)[where]
    return Test("change of maps by refinement", float(sine.double().mean().sqrt()),
                description="rms sine of the angle between the vectors of the coils, over the object; reported")  # fmt: skip


def _rms(value: Tensor) -> float:
    return float(value.double().square().mean().sqrt())


def _magnitudes(acquisition: Acquisition, prior: Any, rows: int, seed: int) -> Tensor:
    return rough_draws(acquisition, prior, rows, seed, name="sensitivity").norm(dim=1)
