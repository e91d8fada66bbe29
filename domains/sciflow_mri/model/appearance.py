"""What a scanner adds to a magnitude: contrast, slow intensity changes, phase."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

__all__ = ["bias_field", "contrast", "smooth_phase"]


def contrast(image: NDArray[np.floating], rng: np.random.Generator) -> NDArray[np.float32]:
    """Intensities in [0, 1.5] through a random curve that keeps 0.

    Seven of ten curves increase (a power, bent at four levels), the others go up and down between the levels as other
    weightings than the one at hand would.
    """
    levels = np.array([0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5])
    if rng.random() < 0.7:
        heights = levels ** np.exp(rng.uniform(-0.5, 0.5))
        heights[1:-1] *= np.exp(rng.normal(0, 0.15, 5))
        heights = np.maximum.accumulate(heights)
    else:
        heights = np.concatenate(([0.0], rng.uniform(0.1, 1.0, 6)))
    heights[0] = 0.0
    return np.interp(image, levels, heights).astype(np.float32)


def bias_field(size: int, rng: np.random.Generator, strength: float = 0.25) -> NDArray[np.float32]:
    """exp of a polynomial of second order (size, size), standard deviation of each coefficient `strength`."""
    return np.exp(_polynomial(size, rng, 2) * strength).astype(np.float32)


def smooth_phase(size: int, rng: np.random.Generator) -> NDArray[np.complex64]:
    """exp(i phase) (size, size): any constant, a polynomial of third order and a few low waves, in all some radians."""
    phase = rng.uniform(-np.pi, np.pi) + rng.uniform(0, 1.2) * _polynomial(size, rng, 3)
    x = np.arange(size) / size
    for _ in range(4):
        wave = rng.uniform(-2.5, 2.5, 2)
        angle = 2 * np.pi * (wave[0] * x[:, None] + wave[1] * x) + rng.uniform(0, 2 * np.pi)
        phase = phase + rng.uniform(0, 0.25) * np.cos(angle)
    return np.exp(1j * phase).astype(np.complex64)


def _polynomial(size: int, rng: np.random.Generator, order: int) -> NDArray[np.float64]:
    """Sum of c_jk P_j(u) P_k(v), 0 < j + k <= order, in Legendre polynomials on [-1, 1], c standard normal."""
    u = (np.arange(size) + 0.5) / size * 2 - 1
    basis = np.polynomial.legendre.legvander(u, order)
    weights = rng.normal(size=(order + 1, order + 1))
    degrees = np.add.outer(np.arange(order + 1), np.arange(order + 1))
    return basis @ np.where((degrees > 0) & (degrees <= order), weights, 0) @ basis.T
