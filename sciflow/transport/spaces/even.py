"""Functions of a squared length that are smooth at 0, with their gradients, where the formula in the length is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["arsinc", "artanhc", "cosine", "log_sinhc", "sinc", "tanhc"]


def _even(s: Tensor, series: tuple[float, ...], formula: Callable[[Tensor], Tensor], below: float) -> Tensor:
    """Taylor's polynomial in s below a bound, the formula in sqrt(s) above, clamped so that no NaN leaks into gradients."""
    small = s < below
    near = torch.where(small, s, 0)
    polynomial = torch.full_like(s, series[-1])
    for coefficient in reversed(series[:-1]):
        polynomial = polynomial * near + coefficient
    return torch.where(small, polynomial, formula(torch.where(small, 1.0, s).sqrt()))


def cosine(s: Tensor) -> Tensor:
    """cos sqrt(s)."""
    return _even(s, (1.0, -1 / 2, 1 / 24, -1 / 720, 1 / 40320, -1 / 3628800, 1 / 479001600), torch.cos, 0.05)


def sinc(s: Tensor) -> Tensor:
    """sin(sqrt s) / sqrt s."""
    series = (1.0, -1 / 6, 1 / 120, -1 / 5040, 1 / 362880, -1 / 39916800, 1 / 6227020800)
    return _even(s, series, lambda r: torch.sin(r) / r, 0.05)


def tanhc(s: Tensor) -> Tensor:
    """tanh(sqrt s) / sqrt s."""
    series = (1.0, -1 / 3, 2 / 15, -17 / 315, 62 / 2835, -1382 / 155925, 21844 / 6081075)
    return _even(s, series, lambda r: torch.tanh(r) / r, 0.005)


def artanhc(s: Tensor) -> Tensor:
    """artanh(sqrt s) / sqrt s, of s < 1; finite at the rim."""
    edge = 1 - 4 * torch.finfo(s.dtype).eps
    s = s.clamp(max=edge * edge)
    return _even(s, tuple(1 / (2 * k + 1) for k in range(8)), lambda r: torch.atanh(r) / r, 0.01)


def log_sinhc(s: Tensor) -> Tensor:
    """log(sinh(sqrt s) / sqrt s)."""
    series = (0.0, 1 / 6, -1 / 180, 1 / 2835, -1 / 37800, 1 / 467775, -691 / 3831077250)
    return _even(s, series, lambda r: r + torch.log(-torch.expm1(-2 * r) / (2 * r)), 0.02)


def arsinc(s: Tensor) -> Tensor:
    """arcsin(sqrt s) / sqrt s near 0, by its series: for s < 0.005."""
    polynomial = torch.full_like(s, 231 / 13312)
    for coefficient in (63 / 2816, 35 / 1152, 5 / 112, 3 / 40, 1 / 6, 1.0):
        polynomial = polynomial * s + coefficient
    return polynomial
