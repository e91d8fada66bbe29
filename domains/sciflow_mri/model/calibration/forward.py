"""What a scanner of unknown noise and imperfectly known coils makes of an image, as a differentiable function."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer, real
from sciflow.errors import UserError
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.physics.fourier import to_image
from sciflow_mri.physics.masks import calibration_block

__all__ = ["CoilModel", "polynomials"]


def polynomials(size: tuple[int, int], degree: int) -> Tensor:
    """Legendre products P_j(v) P_k(u), j + k <= degree, on [-1, 1]^2: (terms, y, x), float64; the first is 1.

    >>> polynomials((4, 4), 2).shape
    torch.Size([6, 4, 4])
    """
    v, u = ((np.arange(side) + 0.5) / side * 2 - 1 for side in size)
    rows, columns = np.polynomial.legendre.legvander(v, degree), np.polynomial.legendre.legvander(u, degree)
    pairs = sorted(((j, k) for j in range(degree + 1) for k in range(degree + 1 - j)), key=lambda pair: (sum(pair), pair))
    return torch.from_numpy(np.stack([np.outer(rows[:, j], columns[:, k]) for j, k in pairs]))


class CoilModel:
    r"""Coil vectors of the calibration lines as a function of the parameters theta:

        S_c^theta(r) = S_c(r) exp( sum_p (g_p + a_cp) phi_p(r) ),      sum_c a_cp = 0,
        m_c = F_b' M_b F (S_c^theta x) + sigma n_c,                    n_c: N(0, 1) per real and per imaginary part.

    M_b keeps the block of calibration lines (and columns), which every scan measures, and F_b is the transform of its size: m
    is a small image of each coil, with a vector (coil,) at each of its places r. phi are Legendre products of low order.

    *Gauge.* A factor common to all coils is not identifiable (S g and x / g give the same data), so a, complex, has mean zero
    over coils: a = B b with B (coils, coils - 1) orthonormal and orthogonal to 1. The exponential makes this exact: a common
    factor is a common sum. Its real part g stays as a nuisance, since populations of images differ in brightness from the
    scans; its imaginary part is the phase of images and left to them: the matching sees no phase at r, only (faintly) how fast
    it changes within a place of the small image, so that images should have phases like those of scans.

    theta = [log sigma, g (terms), Re b, Im b ((coils - 1) terms each)], float64.

    Arguments:
        maps: nominal S (C, H, W), complex, up to any common factor.
        calibration: [first, last + 1] of the calibration lines that all scans have.
        columns: [first, last + 1] along the readout; by default twice as many as there are lines, in the centre. The more, the
            more places with little but noise, and the more work.
        degree: of the polynomials; 0 is a gain and a phase per coil.
        size: prior standard deviation of the mismatch coefficients b: the relative error of maps that is expected.

    Raises `UserError` for maps that are not finite or zero in a coil, or if block or degree make no sense.

    >>> model = CoilModel(torch.ones(2, 8, 8, dtype=torch.complex64), (2, 6), degree=1)
    >>> model.count, model.places
    (10, 32)
    """

    def __init__(
        self,
        maps: Tensor,
        calibration: Sequence[int],
        *,
        columns: Sequence[int] | None = None,
        degree: int = 2,
        size: float = 0.3,
    ) -> None:
        maps = torch.as_tensor(maps)
        if maps.dim() != 3 or not maps.is_complex():
            raise UserError(f"calibration: the maps are {tuple(maps.shape)} of {maps.dtype}, expected complex (coil, y, x)")
        if not bool(maps.isfinite().all()) or bool((maps == 0).flatten(1).all(1).any()):
            raise UserError("calibration: the maps are not finite, or those of a coil are all zero: leave such coils out")
        self.maps = maps.to(torch.complex128)
        self.degree, self.size = integer("degree", degree, 0, 7), real("size", size, 1e-6, 10.0)
        height, width = maps.shape[1:]
        self.rows = _block("calibration", calibration, height)
        lines = self.rows[1] - self.rows[0]
        self.columns = _block("columns", calibration_block(width, min(2 * lines, width)) if columns is None else columns, width)
        self.basis = polynomials((height, width), self.degree).to(maps.device)
        self.gauge = _contrasts(len(maps)).to(maps.device)
        # transform, block and small inverse transform as one matrix an axis: cheaper than a whole transform for a small block
        sides = ((height, self.rows), (width, self.columns))
        self._sides = [_narrowing(size_, block).to(maps.device) for size_, block in sides]

    @property
    def coils(self) -> int:
        return len(self.maps)

    @property
    def grid(self) -> tuple[int, int]:
        """Lines and columns of the block: the size of the small coil images."""
        return self.rows[1] - self.rows[0], self.columns[1] - self.columns[0]

    @property
    def places(self) -> int:
        return math.prod(self.grid)

    @property
    def terms(self) -> int:
        return len(self.basis)

    @property
    def count(self) -> int:
        """Of parameters: 1 + terms (1 + 2 (coils - 1))."""
        return 1 + self.terms * (2 * self.coils - 1)

    @property
    def precision(self) -> Tensor:
        """Prior 1 / variance (count,): flat for log sigma, 1 for g, 1 / size^2 for the mismatch."""
        found = torch.full((self.count,), self.size**-2, dtype=torch.float64, device=self.maps.device)
        found[0], found[1 : 1 + self.terms] = 0.0, 1.0
        return found

    def start(self, sigma: float) -> Tensor:
        """theta of the nominal maps."""
        theta = torch.zeros(self.count, dtype=torch.float64, device=self.maps.device)
        theta[0] = math.log(sigma)
        return theta

    def coefficients(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """g (terms,) and a (coils, terms), complex, whose sum over coils is 0."""
        g, re, im = theta[1:].split([self.terms, *[self.terms * (self.coils - 1)] * 2])
        b = torch.complex(re, im).reshape(self.coils - 1, self.terms)
        return g, self.gauge.to(b.dtype) @ b

    def maps_at(self, theta: Tensor, *, common: bool = False) -> Tensor:
        """S^theta (C, H, W), complex128; the common factor exp(g phi) is left out unless `common`."""
        g, a = self.coefficients(theta)
        exponent = a + g if common else a
        return self.maps * torch.einsum("cp,pyx->cyx", exponent, self.basis.to(exponent.dtype)).exp()

    def with_maps(self, images: Tensor, maps: Tensor) -> Tensor:
        """Coil vectors (N, places, C) of complex images (N, H, W) under maps, without noise."""
        down, across = self._sides
        return (down @ ((maps * images.unsqueeze(1)) @ across.T)).flatten(2).transpose(1, 2)

    def vectors(self, kspace: Tensor) -> Tensor:
        """Coil vectors (N, places, C), complex128, of k-space (N, C, H, W), of which only the block is looked at."""
        block = kspace[..., slice(*self.rows), slice(*self.columns)].to(torch.complex128)
        return to_image(block).flatten(2).transpose(1, 2)

    def measured(self, scans: Any) -> Tensor:
        """Coil vectors of measured k-space (N, C, H, W).

        Raises `UserError` if its shape does not fit or the block is not measured or not finite in every scan.
        """
        scans = torch.as_tensor(scans)
        if scans.dim() != 4 or not scans.is_complex() or scans.shape[1:] != self.maps.shape:
            raise UserError(
                f"calibration: the scans are {tuple(scans.shape)} of {scans.dtype}, expected complex (scans, "
                f"{str(tuple(self.maps.shape))[1:]} as the maps"
            )
        block = scans[..., slice(*self.rows), slice(*self.columns)]
        damaged = (~block.isfinite()).flatten(1).any(1) | (block == 0).all(3).flatten(1).any(1)
        if bool(damaged.any()):
            raise UserError(
                f"calibration: scans {damaged.nonzero()[:8, 0].tolist()} have entries that are not finite, or unmeasured lines "
                f"or silent coils among the calibration lines {self.rows[0]} to {self.rows[1] - 1}: give lines that all have"
            )
        return self.vectors(scans)

    def complex_images(self, images: Any) -> Tensor:
        """Images (N, 2, H, W) as complex128 (N, H, W). Raises `UserError` for another shape or values that are not finite."""
        images = torch.as_tensor(images)
        if images.dim() != 4 or images.shape[1:] != (2, *self.maps.shape[1:]):
            height, width = self.maps.shape[1:]
            raise UserError(f"calibration: the images are {tuple(images.shape)}, expected (images, 2, {height}, {width})")
        if not bool(images.isfinite().all()):
            raise UserError("calibration: there are images with values that are not finite")
        return torch.complex(images[:, 0].double(), images[:, 1].double())


def _block(name: str, bounds: Sequence[int], size: int) -> tuple[int, int]:
    if len(bounds) != 2 or not 0 <= int(bounds[0]) < int(bounds[1]) <= size:
        raise UserError(
            f"{name} {list(bounds)} does not fit into {size}: give [first, last + 1] with 0 <= first <= last < {size}"
        )
    return int(bounds[0]), int(bounds[1])


def _narrowing(size: int, block: tuple[int, int]) -> Tensor:
    """F_b' M_b F (block, size) along one axis, complex128."""
    whole, small = fourier_matrix(size, torch.complex128), fourier_matrix(block[1] - block[0], torch.complex128)
    return small.mH @ whole[block[0] : block[1]]


def _contrasts(coils: int) -> Tensor:
    """(coils, coils - 1), orthonormal columns that sum to zero."""
    rows = torch.arange(coils, dtype=torch.float64).unsqueeze(1)
    k = torch.arange(1, coils, dtype=torch.float64)
    return torch.where(rows < k, 1.0, torch.where(rows == k, -k, 0.0)) / (k * (k + 1)).sqrt()
