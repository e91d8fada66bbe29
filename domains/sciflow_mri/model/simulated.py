"""Simulated scans: an image seen by coils that are known only to the simulation."""

from __future__ import annotations

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sciflow.errors import UserError
from sciflow_mri.data import make_scan
from sciflow_mri.physics.fourier import to_kspace

__all__ = ["coil_maps", "simulated_scan"]


def coil_maps(coils: int, size: int | tuple[int, int], rng: np.random.Generator) -> NDArray[np.complex64]:
    """Sensitivities (coil, y, x) of loops around the field of view: sum_c |S_c|^2 varies, as in a real array.

    Loops stand on an ellipse at irregular angles and distances; each falls off with distance, and its phase turns around it.
    Random smooth factors make every array another one.
    """
    height, width = (size, size) if isinstance(size, int) else size
    y, x = np.meshgrid((np.arange(height) + 0.5) / height - 0.5, (np.arange(width) + 0.5) / width - 0.5, indexing="ij")
    maps = []
    for number in range(coils):
        angle = 2 * np.pi * (number + rng.uniform(-0.25, 0.25)) / coils
        away = rng.uniform(0.6, 0.8)
        dy, dx = y - away * np.sin(angle), x - away * np.cos(angle)
        size_of_loop = rng.uniform(0.25, 0.4)
        fall = (size_of_loop**2 + dx**2 + dy**2) ** -rng.uniform(0.8, 1.3)
        phase = np.angle(dx + 1j * dy) + rng.uniform(-np.pi, np.pi) + rng.normal(0, 0.8) * x + rng.normal(0, 0.8) * y
        maps.append(fall * np.exp(1j * phase))
    found = np.stack(maps)
    return (found / np.sqrt((np.abs(found) ** 2).sum(0).mean())).astype(np.complex64)


def simulated_scan(
    image: Tensor, mask: NDArray[np.bool_] | Tensor, *, coils: int = 8, noise: float = 0.01, seed: int = 0
) -> tuple[xr.Dataset, Tensor]:
    """A scan of an image (2, y, x), and the image a perfect reconstruction finds (2, y, x).

    The latter is the image times (sum_c |S_c|^2)^(1/2): maps that are estimated have unit norm. Its phase is that of the image.

    Arguments:
        mask: (ky,) or (ky, kx).
        noise: standard deviation of real and imaginary part each, in units of the largest magnitude of the image.
        seed: of coils and noise.

    Raises `UserError` for an image of another shape.
    """
    if image.dim() != 3 or image.shape[0] != 2:
        raise UserError(f"the image has shape {tuple(image.shape)}, expected (2, y, x): real and imaginary part")
    rng = np.random.default_rng((seed, 5))
    maps = torch.from_numpy(coil_maps(coils, (image.shape[1], image.shape[2]), rng))
    complex_image = torch.complex(image[0], image[1])
    kspace = to_kspace(maps * complex_image)
    sigma = noise * float(image.norm(dim=0).max())
    white = rng.normal(size=(2, *kspace.shape)).astype(np.float32)
    kspace = kspace + sigma * torch.complex(torch.from_numpy(white[0]), torch.from_numpy(white[1]))
    where = torch.as_tensor(mask).bool()
    kspace = torch.where(where.unsqueeze(1) if where.dim() == 1 else where, kspace, 0)
    scan = make_scan(kspace.numpy()[None], mask=where.numpy(), attrs={"source": f"simulation {seed}", "sigma": sigma})
    return scan, image * maps.abs().square().sum(0).sqrt()
