"""Scans that a prior of heads should not be trusted with, by kind; no script.

Every image has the smooth phase, the bias field and the cut k-space of training images, every scan coils and noise of
`simulated_scan`, so that nothing but the anomaly tells them from heads.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from sciflow_mri.data import make_scan
from sciflow_mri.model.appearance import bias_field, contrast, smooth_phase
from sciflow_mri.model.simulated import coil_maps, simulated_scan
from sciflow_mri.model.slices import oblique_slice
from sciflow_mri.physics.fourier import to_kspace
from scipy.ndimage import affine_transform, gaussian_filter, rotate
from torch import Tensor

__all__ = ["GROUPS", "KINDS", "anomalous", "head"]

Array = NDArray[np.floating]
GROUPS = {
    "corrupted": ("spikes", "motion between lines", "phase errors of lines"),
    "contrast and orientation": ("inverted, air bright", "inverted inside the head", "rotated by 30 to 60 degrees"),
    "wrong mask": ("other lines claimed", "other lines off by one", "unmeasured lines claimed"),
    "wrong field of view": ("wrapped along y", "cut off centre", "rolled by half", "oversampling left in"),
    "not a head": ("texture", "ellipses", "numerals", "1/f noise", "photograph"),
}
KINDS = tuple(kind for kinds in GROUPS.values() for kind in kinds)


def head(volume: Array, size: int, rng: np.random.Generator, *, change: Callable[[Array], Array] | None = None) -> Tensor:
    """A training image (2, size, size) of a `normalised` volume, its magnitude changed before phase and cut."""
    magnitude = contrast(oblique_slice(volume.astype(np.float32), 2 * size, rng), rng)
    return _finished(magnitude if change is None else change(magnitude), size, rng)


def anomalous(
    kind: str, volume: Array, mask: Tensor, rng: np.random.Generator, *, calibration: int, coils: int = 8, noise: float = 0.01
) -> xr.Dataset:
    """One scan of a kind of `KINDS`; `mask` (lines,) is what the scan says of itself."""
    size, seed = len(mask), int(rng.integers(2**31))
    if kind in ("motion between lines", "wrapped along y", *GROUPS["wrong mask"], "phase errors of lines", "spikes"):
        return _altered(kind, volume, mask, rng, calibration, coils, noise, seed)
    changes: dict[str, Callable[[Array], Array]] = {
        "inverted, air bright": lambda m: m.max() - m,
        "inverted inside the head": lambda m: np.where(gaussian_filter(m, 2) > 0.15, np.clip(1.1 * m.max() - m, 0, None), m),
        "rotated by 30 to 60 degrees": lambda m: rotate(m, rng.choice([-1, 1]) * rng.uniform(30, 60), reshape=False, order=1),
        "cut off centre": lambda m: _moved(m, rng),
        "rolled by half": lambda m: np.roll(m, m.shape[0] // 2, int(rng.integers(2))),
        "oversampling left in": lambda m: affine_transform(m, [1.0, 2.0], [0.0, -m.shape[1] / 2], order=1),
    }
    if kind in changes:
        image = head(volume, size, rng, change=changes[kind])
    else:
        image = _finished(_picture(kind, 2 * size, rng), size, rng)
    return simulated_scan(image, mask, coils=coils, noise=noise, seed=seed)[0]


def _altered(
    kind: str, volume: Array, mask: Tensor, rng: np.random.Generator, calibration: int, coils: int, noise: float, seed: int
) -> xr.Dataset:
    size = len(mask)
    if kind == "wrapped along y":  # the object is 1.3 to 1.7 fields of view high; coils stand around the object
        tall = 2 * round(size * rng.uniform(1.3, 1.7) / 2)
        magnitude = contrast(oblique_slice(volume.astype(np.float32), 2 * size, rng), rng)
        wide = affine_transform(magnitude, [2 * size / (2 * tall), 1.0], output_shape=(2 * tall, 2 * size), order=1)
        image = _cut(wide * bias_field(2 * tall, rng)[:, : 2 * size] * smooth_phase(2 * tall, rng)[:, : 2 * size], tall, size)
        seen = coil_maps(coils, (tall, size), rng) * image
        folded = np.zeros((coils, size, size), complex)
        for row in range(tall):
            folded[:, (row - tall // 2 + size // 2) % size] += seen[:, row]
        kspace = to_kspace(torch.from_numpy(folded.astype(np.complex64)))
        return _scan(kspace, mask, noise * float(np.abs(image).max()), rng)
    image = head(volume, size, rng)
    full, _ = simulated_scan(image, torch.ones(size, dtype=torch.bool), coils=coils, noise=noise, seed=seed)
    kspace = torch.from_numpy(full["kspace"].values[0].copy())
    lines = mask.nonzero()[:, 0].numpy()
    first = size // 2 - calibration // 2
    others = lines[(lines < first) | (lines >= first + calibration)]
    if kind == "spikes":
        largest = float(kspace.abs().max())
        for _ in range(rng.integers(1, 5)):
            weight = rng.normal(size=coils) + 1j * rng.normal(size=coils)
            weight *= rng.uniform(0.1, 0.5) * largest / np.abs(weight).max()
            kspace[:, rng.choice(lines), rng.integers(size)] += torch.from_numpy(weight.astype(np.complex64))
    elif kind == "motion between lines":  # in the second half of a random order of lines the head lies elsewhere
        state = rotate(image.numpy(), rng.choice([-1, 1]) * rng.uniform(4, 10), axes=(1, 2), reshape=False, order=1)
        state = np.roll(state, (rng.integers(1, 4), rng.integers(1, 4)), (1, 2)).astype(np.float32)
        second, _ = simulated_scan(
            torch.from_numpy(state), torch.ones(size, dtype=torch.bool), coils=coils, noise=noise, seed=seed
        )
        late = rng.permutation(lines)[: len(lines) // 2]
        kspace[:, late] = torch.from_numpy(second["kspace"].values[0].copy())[:, late]
    elif kind == "phase errors of lines":
        turns = np.exp(1j * rng.normal(0, 0.5, size)).astype(np.complex64)
        kspace = kspace * torch.from_numpy(turns)[:, None]
    elif kind == "other lines claimed":
        free = np.setdiff1d(np.arange(size), np.arange(first, first + calibration))
        kspace[:, others] = kspace[:, np.sort(rng.choice(free, len(others), replace=False))]
    elif kind == "other lines off by one":
        kspace[:, others] = kspace[:, (others + rng.choice([-1, 1])) % size]
    else:  # unmeasured lines claimed: half of the lines beside the centre hold nothing but noise
        empty = rng.permutation(others)[: max(len(others) // 2, 1)]
        sigma = float(full.attrs["sigma"])
        pairs = rng.normal(0, sigma, (2, coils, len(empty), size)).astype(np.float32)
        kspace[:, empty] = torch.complex(torch.from_numpy(pairs[0]), torch.from_numpy(pairs[1]))
    return _scan(kspace, mask, 0.0, rng)


def _scan(kspace: Tensor, mask: Tensor, sigma: float, rng: np.random.Generator) -> xr.Dataset:
    white = rng.normal(0, 1, (2, *kspace.shape)).astype(np.float32) * sigma
    kspace = kspace + torch.complex(torch.from_numpy(white[0]).float(), torch.from_numpy(white[1]).float())
    kspace = torch.where(mask.unsqueeze(1), kspace, 0).to(torch.complex64)
    return make_scan(kspace.numpy()[None], mask=mask.numpy(), attrs={"source": "anomaly"})


def _finished(magnitude: Array, size: int, rng: np.random.Generator) -> Tensor:
    fine = 2 * size
    image = _cut(magnitude * bias_field(fine, rng) * smooth_phase(fine, rng), size, size)
    return torch.from_numpy(np.stack([image.real, image.imag]).astype(np.float32))


def _cut(image: NDArray[np.complexfloating], height: int, width: int) -> NDArray[np.complexfloating]:
    """The central height x width of k-space, 95th percentile of the magnitude 1."""
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    top, left = image.shape[0] // 2 - height // 2, image.shape[1] // 2 - width // 2
    spectrum = spectrum[top : top + height, left : left + width]
    found = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho"))
    return found / max(float(np.percentile(np.abs(found), 95)), 1e-6)


def _moved(magnitude: Array, rng: np.random.Generator) -> Array:
    """Shifted by 25 to 40 % of the field along one axis; what leaves is lost."""
    far = round(rng.choice([-1, 1]) * rng.uniform(0.25, 0.4) * len(magnitude))
    shift = (far, 0) if rng.random() < 0.5 else (0, far)
    return affine_transform(magnitude, [1.0, 1.0], [-shift[0], -shift[1]], order=1)


def _picture(kind: str, size: int, rng: np.random.Generator) -> Array:
    u = np.linspace(-1, 1, size)
    y, x = np.meshgrid(u, u, indexing="ij")
    if kind == "texture":  # stripes of three directions and lengths
        waves = [np.sin((np.cos(a) * x + np.sin(a) * y) * k + p) for a, k, p in rng.uniform((0, 8, 0), (np.pi, 50, 6), (3, 3))]
        return np.clip(0.5 + 0.3 * sum(waves), 0, None)  # type: ignore[no-any-return]
    if kind == "ellipses":
        image = np.zeros((size, size))
        for _ in range(rng.integers(4, 10)):
            cy, cx, angle = *rng.uniform(-0.5, 0.5, 2), rng.uniform(0, np.pi)
            a, b = rng.uniform(0.1, 0.5, 2)
            v, w = (x - cx) * np.cos(angle) + (y - cy) * np.sin(angle), -(x - cx) * np.sin(angle) + (y - cy) * np.cos(angle)
            image[(v / a) ** 2 + (w / b) ** 2 < 1] = rng.uniform(0.1, 1)
        return image
    if kind == "numerals":
        from PIL import Image, ImageDraw, ImageFont

        sheet = Image.new("L", (size, size))
        text = "".join(map(str, rng.integers(0, 10, 2)))
        ImageDraw.Draw(sheet).text((size // 2, size // 2), text, fill=255, font=ImageFont.load_default(0.7 * size), anchor="mm")
        return np.asarray(sheet, float) / 255 * rng.uniform(0.6, 1)
    if kind == "1/f noise":
        frequency = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.fftfreq(size)) + 1 / size
        field = np.fft.ifft2(np.fft.fft2(rng.normal(size=(size, size))) / frequency ** rng.uniform(1.0, 1.6)).real
        return np.clip(0.5 + 0.25 * field / field.std(), 0, None)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from matplotlib import cbook, image

        photograph = np.asarray(image.imread(cbook.get_sample_data("grace_hopper.jpg")), float).mean(2) / 255
    side = int(rng.integers(200, 450))
    top, left = (int(rng.integers(0, length - side)) for length in photograph.shape)
    return affine_transform(
        photograph[top : top + side, left : left + side], [side / size] * 2, output_shape=(size, size), order=1
    )
