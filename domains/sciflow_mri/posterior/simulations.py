"""Scans whose image is known, of many accelerations, coil numbers and noise levels, each estimated like a real one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.model.training_images import training_images
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.posterior.acquisition import Acquisition, acquire

__all__ = ["Simulated", "simulated_acquisitions"]


class Simulated(NamedTuple):
    """`truth` (2, y, x) is in units of the prior, as `acquisition` estimates them."""

    acquisition: Acquisition
    truth: Tensor


def simulated_acquisitions(
    volume: NDArray[np.floating], count: int, size: int, *, seed: int, accelerations: Sequence[float] = (2.5, 9.0),
    calibration: int | None = None, coils: Sequence[int] = (6, 8, 12), noise: Sequence[float] = (0.003, 0.03),
    spacing: tuple[float, float, float] = (1.0, 1.0, 1.0), start: int = 0,
) -> Iterator[Simulated]:  # fmt: skip
    """`count` simulated scans of one person; scan i depends on (seed, start + i) alone.

    The image is one of `training_images`, the mask random or equispaced lines of an acceleration drawn log-uniformly, 4 to 12
    calibration lines but no more than half of all, the number of coils one of `coils`, the noise drawn log-uniformly.
    Maps, noise and scale are estimated from the simulated lines alone: nothing is shared with the simulation.

    Arguments:
        volume: magnitudes (z, y, x) of one head.
        accelerations, noise: least and largest; noise in units of the largest magnitude.
        calibration: lines, instead of drawing them.

    Raises `UserError` for ranges that are empty or not positive.
    """
    count = integer("count", count, 1, 2**31)
    for name, (low, high) in (("accelerations", accelerations), ("noise", noise)):
        if not 0 < low <= high:
            raise UserError(f"{name}={(low, high)}: give the least and the largest, both > 0")
    for number in range(start, start + count):
        rng = np.random.default_rng((seed, number, 17))
        image = training_images([volume], 1, size, seed=int(rng.integers(2**31)), spacings=[spacing])[0]
        rate = float(np.exp(rng.uniform(*np.log(accelerations))))
        lines = round(size / rate)
        most = max(2, min(12, lines // 2))
        central = min(2 * int(rng.integers(2, 7)), most) if calibration is None else calibration
        mask = line_mask(size, rate, central, ("random", "equispaced")[int(rng.integers(2))], seed=int(rng.integers(2**31)))
        level = float(np.exp(rng.uniform(*np.log(noise))))
        scan, truth = simulated_scan(image, mask, coils=int(rng.choice(coils)), noise=level, seed=int(rng.integers(2**31)))
        acquisition = acquire(scan)
        yield Simulated(acquisition, truth / acquisition.scale)
