"""Convolution with a kernel: circular in closed form, with zeros beyond the edge or without an edge by conjugate gradients."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.operators.base import Linear, Operator, shape_of

__all__ = ["Convolution"]


class Convolution(Linear):
    r"""y_i = sum_j h_j x_{i - j + c} over the last dimensions, as many as the kernel has, with its centre at c = size // 2.

    Boundaries:
        circular: x is periodic. |H|^2, the spectrum of A'A, is diagonal in Fourier space: everything in closed form.
        zero: x is 0 beyond its edge; y has the size of x.
        valid: only what the kernel sees wholly; y is smaller by the size of the kernel less one.

    All three are evaluated by FFT. A complex kernel wants complex x, a real one takes both.

    Arguments:
        kernel: h, with one dimension per dimension of the convolution; not normalised here.
        domain: the shape of one row; further dimensions in front (channels) are convolved each for itself.
        boundary: "circular", "zero" or "valid".

    Raises `UserError` if the kernel is larger than the image or not finite.

    >>> operator = Convolution([0.25, 0.5, 0.25], 4)
    >>> operator(torch.tensor([[4.0, 0.0, 0.0, 0.0]])), operator.singular_values()
    (tensor([[2., 1., 0., 1.]]), tensor([1.0000, 0.5000, 0.5000, 0.0000], dtype=torch.float64))
    """

    kernel: Tensor
    _spectrum: Tensor

    def __init__(self, kernel: Any, domain: int | Sequence[int], *, boundary: str = "circular") -> None:
        super().__init__()
        if boundary not in ("circular", "zero", "valid"):
            raise UserError(f"Convolution: boundary={boundary!r}, expected 'circular', 'zero' or 'valid'")
        self.domain, self.boundary = shape_of(self, domain), boundary
        value = checked_kernel(self, constant(self, "kernel", kernel), self.domain)
        self.register_buffer("kernel", value)
        self.complex_domain = True if value.is_complex() else None
        self._dims = tuple(range(-value.dim(), 0))
        sizes = self.domain[-value.dim() :]
        double = torch.complex128 if value.is_complex() else torch.float64
        if boundary == "circular":
            self._grid, start, seen = tuple(sizes), (0,) * value.dim(), tuple(sizes)
            spectrum = transfer(value.to(double), self._grid)
        else:
            self._grid = tuple(n + k - 1 for n, k in zip(sizes, value.shape, strict=True))
            zero = boundary == "zero"
            start = tuple(k // 2 if zero else k - 1 for k in value.shape)
            seen = tuple(n if zero else n - k + 1 for n, k in zip(sizes, value.shape, strict=True))
            spectrum = torch.fft.fftn(value.to(double), s=self._grid)
        self.register_buffer("_spectrum", spectrum, persistent=False)
        self._input: Any = (..., *(slice(0, n) for n in sizes))
        self._window: Any = (..., *(slice(a, a + n) for a, n in zip(start, seen, strict=True)))
        self.range = torch.Size([*self.domain[: -value.dim()], *seen])
        self.closed_gram = boundary == "circular"

    def forward(self, x: Tensor) -> Tensor:
        return self._filtered(self.check_input(x), matched(self._spectrum, x))[self._window]

    def adjoint(self, y: Tensor) -> Tensor:
        padded = self.check_output(y)
        if self.boundary != "circular":
            padded = y.new_zeros(*y.shape[: -len(self._dims)], *self._grid)
            padded[self._window] = y
        return self._filtered(padded, matched(self._spectrum, y).conj())[self._input]

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return super().gram_solve(r, shift) if not self.closed_gram else self._divided(self.check_output(r), shift)

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return super().normal_solve(r, shift) if not self.closed_gram else self._divided(self.check_input(r), shift)

    def singular_values(self) -> Tensor | None:
        if not self.closed_gram:
            return None
        copies = math.prod(self.domain[: -len(self._dims)])
        return self._spectrum.abs().flatten().repeat(copies).sort(descending=True).values

    def _divided(self, r: Tensor, shift: float | Tensor) -> Tensor:
        return self._filtered(r, reciprocal(matched(self._spectrum, r).abs().square(), self.rows(shift, r)))

    def _filtered(self, x: Tensor, factor: Tensor) -> Tensor:
        found = torch.fft.ifftn(torch.fft.fftn(x, s=self._grid, dim=self._dims) * factor, dim=self._dims)
        return found if x.is_complex() or self.kernel.is_complex() else found.real

    def extra_repr(self) -> str:
        return f"{tuple(self.kernel.shape)} kernel on {tuple(self.domain)}, boundary={self.boundary!r}"


def checked_kernel(owner: Operator, kernel: Tensor, domain: torch.Size) -> Tensor:
    """A kernel that fits into the last dimensions of the domain. Raises `UserError` with both shapes if not."""
    name = type(owner).__name__
    kernel = kernel if kernel.is_floating_point() or kernel.is_complex() else kernel.to(torch.get_default_dtype())
    if not 0 < kernel.dim() <= len(domain):
        raise UserError(f"{name}: the kernel has {kernel.dim()} dimensions, expected 1 to {len(domain)} for {tuple(domain)}")
    if any(k > n or k < 1 for k, n in zip(kernel.shape, domain[-kernel.dim() :], strict=True)):
        raise UserError(f"{name}: the kernel has shape {tuple(kernel.shape)}, which is larger than the image {tuple(domain)}")
    if not bool(kernel.isfinite().all()) or not bool((kernel != 0).any()):
        raise UserError(f"{name}: the kernel has values that are not finite, or is zero everywhere")
    return kernel


def transfer(kernel: Tensor, grid: Sequence[int]) -> Tensor:
    """The Fourier transform of a kernel whose centre sits at the origin of a periodic grid."""
    padded = kernel.new_zeros(tuple(grid))
    padded[tuple(slice(0, k) for k in kernel.shape)] = kernel
    shifts = [-(k // 2) for k in kernel.shape]
    return torch.fft.fftn(padded.roll(shifts, tuple(range(kernel.dim()))))


def reciprocal(power: Tensor, shift: Tensor) -> Tensor:
    """1 / (power + shift); without a shift 0 where the power is that of rounding errors."""
    rounding = (4 * max(1.0, math.log2(power.numel())) * torch.finfo(power.dtype).eps) ** 2
    total = power + shift
    empty = (power <= rounding * power.amax()) & (shift <= 0)
    return torch.where(empty, 0, 1 / torch.where(empty, 1, total))
