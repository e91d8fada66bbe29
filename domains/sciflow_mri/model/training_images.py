"""Complex images to learn a prior from: slices of heads as a scanner would show them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow_mri.model.appearance import bias_field, contrast, smooth_phase
from sciflow_mri.model.slices import normalised, oblique_slice

__all__ = ["PERCENTILE", "one_image", "scale_of", "training_images"]

PERCENTILE = 95.0  # of the magnitude: the level that is 1 in every image of the prior
_OVERSAMPLING = 2


def scale_of(image: NDArray[np.complexfloating]) -> float:
    """The 95th percentile of the magnitude."""
    return float(np.percentile(np.abs(image), PERCENTILE))


def one_image(
    volume: NDArray[np.float32], size: int, rng: np.random.Generator, spacing: tuple[float, float, float] = (1.0, 1.0, 1.0)
) -> NDArray[np.complex64]:
    """A complex image (size, size) of a `normalised` volume: rendered twice as fine and cut in k-space, as scans are."""
    fine = _OVERSAMPLING * size
    magnitude = contrast(oblique_slice(volume, fine, rng, spacing=spacing), rng) * bias_field(fine, rng)
    image = magnitude * smooth_phase(fine, rng)
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    start = fine // 2 - size // 2
    spectrum = spectrum[start : start + size, start : start + size]
    image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho"))
    return (image / scale_of(image)).astype(np.complex64)


def training_images(
    volumes: Sequence[NDArray[np.floating]], count: int, size: int, *, seed: int,
    spacings: Sequence[tuple[float, float, float]] | None = None, scale_spread: float = 0.2,
) -> Tensor:  # fmt: skip
    """`count` images as real pairs (count, 2, size, size), float32, from the volumes in turn.

    Magnitudes have their 95th percentile at exp(u), u uniform within +- `scale_spread`: how well the scale of a new scan is
    known. Image i depends on (seed, i) alone.

    Arguments:
        volumes: magnitudes (z, y, x), one per person.
        spacings: of their voxels (z, y, x); isotropic by default.

    Raises `UserError` for volumes that are no magnitude images of a head.
    """
    count, size, seed = integer("count", count, 1, 2**31), integer("size", size, 8, 4096), integer("seed", seed, 0, 2**62)
    if not volumes:
        raise UserError("no volumes to learn from: give at least one magnitude image of a head")
    heads = [normalised(volume) for volume in volumes]
    steps = spacings or [(1.0, 1.0, 1.0)] * len(heads)
    if len(steps) != len(heads):
        raise UserError(f"{len(heads)} volumes but {len(steps)} spacings: give one of each")
    images = torch.empty(count, 2, size, size)
    for i in range(count):
        rng = np.random.default_rng((seed, i))
        which = i % len(heads)
        image = one_image(heads[which], size, rng, steps[which]) * np.float32(np.exp(rng.uniform(-scale_spread, scale_spread)))
        images[i, 0], images[i, 1] = torch.from_numpy(image.real.copy()), torch.from_numpy(image.imag.copy())
    return images
