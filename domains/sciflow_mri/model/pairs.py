"""Pairs of image and condition: each image seen by another scanner, and what that scan says of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.training.progress import ProgressBar
from sciflow_mri.model.conditions import condition_of, measured_operator
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics.fourier import to_image
from sciflow_mri.physics.masks import line_mask

__all__ = ["Pairs", "training_pairs"]

_FEWEST = 4  # calibration lines


class Pairs(NamedTuple):
    """`image` (N, 2, H, W) in units of the prior and `condition`, a dict of tensors (N, ...): see `condition_of`."""

    image: Tensor
    condition: dict[str, Tensor]


def training_pairs(
    images: Tensor, *, seed: int, accelerations: Sequence[float] = (2.0, 8.0), calibration: Sequence[int] = (4, 12),
    coils: Sequence[int] = (4, 6, 8), noise: Sequence[float] = (0.003, 0.03), progress: bool = False,
) -> Pairs:  # fmt: skip
    r"""One simulated scan of each image (N, 2, H, W), estimated like a real one; pair i depends on (image i, seed, i) alone.

    Acceleration and noise are drawn log-uniformly, lines are random or equispaced, the number of calibration lines is drawn too
    (at most half of all), and every scan has an array of coils of its own. The condition comes from the measured lines alone.
    Of the truth only the image that is to be found is kept: its magnitude, and its phase as the estimated maps S define it,

        x = |truth| exp(i arg sum_c conj(S_c) (coil image)_c) / scale.

    Arguments:
        accelerations, calibration, noise: least and largest; noise in units of the largest magnitude.
        coils: numbers that are drawn from.
        progress: show a bar on a terminal.

    Raises `UserError` for images of another shape and for ranges that are empty or not positive.
    """
    if images.dim() != 4 or images.shape[1] != 2 or min(images.shape[2:]) < 8:
        raise UserError(f"the images are {tuple(images.shape)}: pairs need (N, 2, H, W) with 8 points a side or more")
    seed = integer("seed", seed, 0, 2**62)
    for name, range_ in (("accelerations", accelerations), ("calibration", calibration), ("noise", noise)):
        if len(range_) != 2 or not 0 < range_[0] <= range_[1] < np.inf:
            raise UserError(f"{name}={tuple(range_)}: give the least and the largest, both > 0")
    if accelerations[0] < 1 or accelerations[1] > images.shape[2] / 4:
        raise UserError(f"accelerations={tuple(accelerations)} of {images.shape[2]} lines: 1 or more, leaving 4 lines")
    found, conditions = [], []
    with ProgressBar(len(images), visible=progress) as bar:
        for number, image in enumerate(images):
            rng = np.random.default_rng((seed, number, 29))
            pair, condition = _pair(image, rng, accelerations, calibration, coils, noise)
            found.append(pair)
            conditions.append(condition)
            bar.update(number + 1, "simulated scans")
    return Pairs(torch.stack(found), {name: torch.stack([each[name] for each in conditions]) for name in conditions[0]})


def _pair(
    image: Tensor, rng: np.random.Generator, accelerations: Sequence[float], calibration: Sequence[int], coils: Sequence[int],
    noise: Sequence[float],
) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
    height = image.shape[1]
    rate, level = (float(np.exp(rng.uniform(*np.log(range_)))) for range_ in (accelerations, noise))
    lines = round(height / rate)
    central = min(int(rng.integers(calibration[0], calibration[1] + 1)), max(_FEWEST, lines // 2), lines)
    mask = line_mask(height, rate, central, ("random", "equispaced")[int(rng.integers(2))], seed=int(rng.integers(2**31)))
    count, seed = int(rng.choice(coils)), int(rng.integers(2**31))
    scan, truth = simulated_scan(image, mask, coils=count, noise=level, seed=seed)
    full, _ = simulated_scan(image, torch.ones_like(mask), coils=count, noise=0.0, seed=seed)  # what no scan has: the target
    operator, y = measured_operator(torch.from_numpy(scan["kspace"].values[0]), mask, scan.attrs["calibration"])
    condition, scale = condition_of(operator, y)
    seen = to_image(torch.from_numpy(full["kspace"].values[0]))
    phase = (operator.maps.conj() * seen).sum(0).angle()
    found = torch.polar(truth.norm(dim=0) / scale, phase)
    return torch.stack([found.real, found.imag]), condition
