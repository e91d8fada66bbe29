"""Which k-space entries a scan measures: lines of phase encoding, or points of a Poisson disc."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError

__all__ = ["calibration_block", "fastmri_mask", "line_mask", "poisson_disc"]

_KINDS = ("random", "equispaced")


def calibration_block(lines: int, calibration: int) -> tuple[int, int]:
    """(first, last + 1) of `calibration` central lines: the zero frequency N // 2 is the (calibration // 2)-th of them.

    Raises `UserError` if they do not fit.

    >>> calibration_block(64, 8), calibration_block(9, 3)
    ((28, 36), (3, 6))
    """
    if not 0 <= calibration <= lines:
        raise UserError(f"{calibration} calibration lines do not fit into {lines} lines: give 0 to {lines}")
    first = lines // 2 - calibration // 2
    return first, first + calibration


def line_mask(lines: int, acceleration: float, calibration: int, kind: str = "random", *, seed: int = 0) -> Tensor:
    """Booleans (lines,), true for measured lines: exactly round(lines / acceleration) of them, the central block among them.

    The lines beside the block are drawn without replacement ("random"), or stand at equal distances of their list from a
    random start ("equispaced"). The exact number makes accelerations comparable between masks, which `fastmri_mask` does not.

    Arguments:
        lines: phase encoding lines N.
        acceleration: R >= 1.
        calibration: lines of the central block.
        seed: of numpy's default generator.

    Raises `UserError` for another kind, R < 1, or a block larger than the number of lines that R allows.

    >>> mask = line_mask(64, 4, 8)
    >>> int(mask.sum()), bool(mask[28:36].all())
    (16, True)
    """
    _kind(kind)
    if not 1 <= acceleration < np.inf:
        raise UserError(f"the acceleration is {acceleration}, expected a number >= 1")
    wanted = round(lines / acceleration)
    first, end = calibration_block(lines, calibration)
    if wanted < max(calibration, 1):
        raise UserError(
            f"{lines} lines at acceleration {acceleration:g} are {wanted} lines, fewer than the {calibration} calibration "
            "lines (or none): lower the acceleration or the calibration lines"
        )
    mask = np.zeros(lines, dtype=bool)
    mask[first:end] = True
    outside, missing = np.flatnonzero(~mask), wanted - calibration
    generator = np.random.default_rng(integer("seed", seed, 0, 2**62))
    if kind == "random":
        mask[generator.choice(outside, missing, replace=False)] = True
    elif missing:
        places = (generator.random() + np.arange(missing)) * (len(outside) / missing)
        mask[outside[places.astype(np.int64)]] = True  # distances >= 1, so that no place comes twice
    return torch.from_numpy(mask)


def fastmri_mask(lines: int, acceleration: float, center_fraction: float, kind: str = "random", *, seed: int = 0) -> Tensor:
    """Booleans (lines,) with the statistics of the fastMRI challenge: of N lines, c = round(N * center_fraction) central ones;

        "random": each other line with probability (N / R - c) / (N - c), so that N / R are measured on average;
        "equispaced": the lines round(o + j a) < N - 1, j = 0, 1, ..., with a = R (c - N) / (c R - N) and a uniform integer
        o in [0, round(a)).

    The random numbers are those of numpy's default generator, not the same as fastMRI's for the same seed. On odd N with even c
    the centre is one line further up than that of `calibration_block`, as it is there.

    Raises `UserError` for another kind, or if the centre alone has N / R lines or more.

    Source: fastMRI: An Open Dataset and Benchmarks for Accelerated MRI, Zbontar et al. 2018 (arXiv 1811.08839).

    >>> int(fastmri_mask(320, 4, 0.08, "equispaced").sum())
    80
    """
    _kind(kind)
    central = round(lines * center_fraction)
    if not 0 <= central <= lines or not acceleration >= 1 or lines / acceleration < central or central == lines:
        raise UserError(
            f"{central} central lines and acceleration {acceleration:g} do not go together on {lines} lines: "
            f"center_fraction has to be below {1 / max(acceleration, 1):.3g}"
        )
    mask = np.zeros(lines, dtype=bool)
    generator = np.random.default_rng(integer("seed", seed, 0, 2**62))
    if kind == "random":
        mask |= generator.random(lines) < (lines / acceleration - central) / (lines - central)
    elif lines > central * acceleration:
        distance = acceleration * (central - lines) / (central * acceleration - lines)
        start = generator.integers(max(round(distance), 1))
        mask[np.around(np.arange(start, lines - 1, distance)).astype(np.int64)] = True
    first = (lines - central + 1) // 2
    mask[first : first + central] = True
    return torch.from_numpy(mask)


def poisson_disc(shape: Sequence[int], acceleration: float, calibration: int | Sequence[int] = 0, *, seed: int = 0) -> Tensor:
    """Booleans (ky, kx) of a variable-density Poisson disc with a full central block; the corners of k-space are left out.

    Measured points keep a distance from each other that grows with the distance from the centre. The number of points is
    (ky kx) / R up to .1 of R. For two phase encodings (slices of a 3-D scan).

    Arguments:
        shape: (ky, kx).
        acceleration: R > 1.
        calibration: the sides of the central block, or one number for both.

    Raises `UserError` if no such mask is found.

    Source: Fast Poisson Disk Sampling in Arbitrary Dimensions, Bridson, SIGGRAPH 2007; the search is sigpy's.

    >>> mask = poisson_disc((32, 32), 4, 6)
    >>> bool(mask[13:19, 13:19].all()), abs(32 * 32 / int(mask.sum()) - 4) < 0.1
    (True, True)
    """
    from sigpy.mri import poisson  # imports numba, which takes a second

    sides = (calibration, calibration) if isinstance(calibration, int) else tuple(calibration)
    if len(shape) != 2 or len(sides) != 2 or not 1 < acceleration < np.inf:
        raise UserError(
            f"a Poisson disc of shape {tuple(shape)}, acceleration {acceleration} and calibration {sides}: give two sides each "
            "and an acceleration > 1"
        )
    rows, columns = (slice(*calibration_block(size, side)) for size, side in zip(shape, sides, strict=True))
    try:
        found = np.array(poisson(tuple(shape), acceleration, calib=sides, dtype=bool, seed=seed))
    except (ValueError, ZeroDivisionError) as error:
        raise UserError(
            f"no Poisson disc of shape {tuple(shape)}, acceleration {acceleration:g} and central block {sides} was found: "
            "make the block smaller or choose another acceleration or seed"
        ) from error
    found[rows, columns] = True  # sigpy's block is one off for odd sides
    return torch.from_numpy(found)


def _kind(kind: str) -> None:
    if kind not in _KINDS:
        raise UserError(f"the kind of mask is {kind!r}, expected one of {', '.join(map(repr, _KINDS))}")
