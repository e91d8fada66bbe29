"""The real scan, its masks and its reference, as every benchmark of reconstructions uses them; no script.

`full.cfl`: a fully sampled brain, 8 coils, 230 x 180, two phase encodings. It trains nothing and tunes no setting of a sampler.
k-space is centred, then cropped to n x n; the 230 lines are the ones that are undersampled. The reference combines the full
data by maps of 24 x 24 calibration points; a reconstruction sees the measured lines alone.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sciflow_mri.physics import calibration_block, line_mask, sensitivity_maps, to_image
from torch import Tensor

from sciflow.errors import UserError

__all__ = [
    "CASES", "SEEDS", "Case", "Reference", "normalised", "rank_correlation", "reference", "scan", "scan_file", "scan_sha256",
    "self_consistent",
]  # fmt: skip

SEEDS = (0, 1, 2, 3, 4)
SHAPE, CENTRE = (230, 180, 8), (116, 89)  # as the header says; where the zero frequency is


@dataclass(frozen=True)
class Case:
    """Exactly size / acceleration lines, `calibration` of them in the centre."""

    size: int
    acceleration: int
    calibration: int

    @property
    def name(self) -> str:
        return f"{self.size} R{self.acceleration}"

    @property
    def block(self) -> tuple[int, int]:
        """[first, last + 1] of the calibration lines."""
        return calibration_block(self.size, self.calibration)

    def mask(self, seed: int) -> Tensor:
        return line_mask(self.size, self.acceleration, self.calibration, seed=seed)


CASES = (Case(64, 4, 8), Case(64, 8, 4), Case(128, 4, 10), Case(128, 8, 6))


@dataclass(frozen=True)
class Reference:
    """The magnitude of the combined full data (y, x), and where they are compared: eigenvalue of their maps above .8."""

    truth: NDArray[np.float64]
    support: NDArray[np.bool_]


def scan_file() -> Path:
    folder = os.environ.get("SCIFLOW_DATA")
    path = Path(folder or "") / "mri" / "full.cfl"
    if not folder or not path.is_file():
        raise UserError(f"{path} does not exist: set SCIFLOW_DATA to the folder that has mri/full.cfl")
    return path


def scan_sha256() -> str:
    return hashlib.sha256(scan_file().read_bytes()).hexdigest()


def scan(size: int) -> Tensor:
    """The scan's k-space (coil, ky, kx), zero frequency at N // 2, cropped to the central size x size."""
    values = np.fromfile(scan_file(), dtype="<c8").reshape(SHAPE, order="F").transpose(2, 0, 1)
    starts = [centre - size // 2 for centre in CENTRE]
    rows, columns = (slice(start, start + size) for start in starts)
    return torch.from_numpy(np.ascontiguousarray(values[:, rows, columns]))


def reference(kspace: Tensor) -> Reference:
    """Of fully sampled k-space (coil, ky, kx)."""
    first, end = calibration_block(kspace.shape[1], 24)
    maps, eigenvalue = sensitivity_maps(kspace, (first, end), window=24, kernel=(6, 6))
    combined = (maps.conj() * to_image(kspace)).sum(0)
    return Reference(combined.abs().double().numpy(), (eigenvalue > 0.8).numpy())


def normalised(kspace: Tensor, maps: Tensor, mask: Tensor) -> tuple[Tensor, float]:
    """Measured k-space, zero elsewhere, divided by the 95th percentile of its zero-filled magnitude; and that percentile."""
    measured = torch.where(mask.unsqueeze(1), kspace, 0)
    image = (maps.conj() * to_image(measured)).sum(0).abs()
    scale = float(torch.quantile(image.flatten(), 0.95))
    return measured / scale, scale


def rank_correlation(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Spearman's, of values without ties."""
    ranks = [np.argsort(np.argsort(value)) for value in (a, b)]
    return float(np.corrcoef(*ranks)[0, 1])


def self_consistent(inside: NDArray[np.floating]) -> float:
    """The rank correlation if a draw were the truth: mean over the draws, each against the others."""
    found = []
    for k in range(min(len(inside), 16)):
        others = np.delete(inside, k, 0)
        found.append(rank_correlation(others.std(0), np.abs(others.mean(0) - inside[k])))
    return float(np.mean(found))
