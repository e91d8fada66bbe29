"""Fewer pixels: means of blocks, or every n-th value of a filtered image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.operators.base import Linear, shape_of
from sciflow.posterior.operators.convolution import Convolution, reciprocal

__all__ = ["Downsample"]


class Downsample(Linear):
    r"""Means over blocks of `factor` pixels; with a kernel, every `factor`-th pixel of the circular convolution with it.

    Both in closed form: A A' = 1 / prod(factor) for means; for the second the spectrum of A A' on the small grid is the mean
    over aliases of |H|^2. Real or complex.

    Arguments:
        domain: the shape of one row.
        factor: of each of the last dimensions, as many as there are factors; one number stands for the last two dimensions
            (the last one, if the domain has one). Must divide the sizes.
        kernel: a filter with as many dimensions as there are factors.

    Raises `UserError` if a factor does not divide the size.

    Source of the aliases: Fast single image super-resolution using a new analytical solution for l2-l2 problems, Zhao et al.
    2016, arXiv 1510.00143.

    >>> operator = Downsample(4, 2)
    >>> operator(torch.tensor([[1.0, 3.0, 5.0, 7.0]])), operator.singular_values()
    (tensor([[2., 6.]]), tensor([0.7071, 0.7071], dtype=torch.float64))
    """

    filter: Any
    _power: Tensor

    def __init__(self, domain: int | Sequence[int], factor: int | Sequence[int], kernel: Any = None) -> None:
        super().__init__()
        self.domain = shape_of(self, domain)
        factors = (factor,) * min(2, len(self.domain)) if isinstance(factor, int) else tuple(factor)
        sizes = self.domain[len(self.domain) - len(factors) :]
        if not 0 < len(factors) <= len(self.domain) or any(f < 1 or n % f for f, n in zip(factors, sizes, strict=False)):
            raise UserError(f"Downsample: the factors {factors} do not divide the last sizes of {tuple(self.domain)}")
        self._factors = factors
        self._strides: Any = (..., *(slice(None, None, f) for f in factors))
        self._small = tuple(n // f for n, f in zip(sizes, factors, strict=True))
        self._lead = self.domain[: len(self.domain) - len(factors)]
        self.range = torch.Size([*self._lead, *self._small])
        self._dims = tuple(range(-len(factors), 0))
        self.filter = None
        if kernel is None:
            self.isometry = 1 / math.prod(factors)
            return
        value = constant(self, "kernel", kernel)
        if value.dim() != len(factors):
            raise UserError(f"Downsample: the kernel has {value.dim()} dimensions, there are {len(factors)} factors")
        self.filter = Convolution(value, self.domain)
        self.complex_domain, self.closed_gram = self.filter.complex_domain, True
        self.register_buffer("_power", self._blocks(self.filter._spectrum.abs().square(), aliases=True), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check_input(x)
        if self.filter is None:
            return self._blocks(x)
        return self.filter(x)[self._strides]

    def adjoint(self, y: Tensor) -> Tensor:
        y = self.check_output(y)
        if self.filter is None:
            for dim, f in zip(self._dims, self._factors, strict=True):
                y = y.repeat_interleave(f, dim) / f
            return y
        full = y.new_zeros(len(y), *self.domain)
        full[self._strides] = y
        return self.filter.adjoint(full)

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        if self.filter is None:
            return super().gram_solve(r, shift)
        factor = reciprocal(matched(self._power, self.check_output(r)), self.rows(shift, r))
        found = torch.fft.ifftn(torch.fft.fftn(r, dim=self._dims) * factor, dim=self._dims)
        return found if r.is_complex() else found.real

    def singular_values(self) -> Tensor | None:
        if self.filter is None:
            return super().singular_values()
        return self._power.sqrt().flatten().repeat(math.prod(self._lead)).sort(descending=True).values

    def _blocks(self, x: Tensor, aliases: bool = False) -> Tensor:
        """Means over blocks of neighbours, or of values that are `small` apart."""
        pairs = [(f, n) if aliases else (n, f) for f, n in zip(self._factors, self._small, strict=True)]
        split = x.reshape(*x.shape[: x.dim() - len(pairs)], *(size for pair in pairs for size in pair))
        return split.mean([-2 * (i + 1) + (0 if aliases else 1) for i in range(len(pairs))])

    def extra_repr(self) -> str:
        return f"{tuple(self.domain)} -> {tuple(self.range)}"
