"""Some frequencies of an image: undersampled magnetic resonance, aperture synthesis, spectra."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant
from sciflow.posterior.operators.base import Linear, shape_of

__all__ = ["FourierMask"]


class FourierMask(Linear):
    r"""y = the entries of the orthonormal discrete Fourier transform where the mask is true: complex, (*lead, m).

    The transform is over the last dimensions, as many as the mask has; frequencies are in the order of `torch.fft.fftn`, the
    zero frequency first (`torch.fft.ifftshift` brings a centred mask into it). Everything in closed form. For complex x,
    A A' = 1. For real x the frequencies k and -k are conjugate: with P the swap of measured pairs,
    A A' = (1 + P) / 2, whose eigenvalues are 1 and 0 on pairs and 1/2 on frequencies without a partner.

    Arguments:
        mask: booleans (or 0 and 1), over the frequencies.
        domain: the shape of one row, of which the last dimensions are those of the mask; that of the mask by default.
        complex_domain: whether x is complex; then `FourierMask(...) @ ToComplex(shape)` acts on pairs of real channels.

    Raises `UserError` if the mask has other values or does not fit the domain.

    >>> operator = FourierMask([True, True, False, False])
    >>> y = operator(torch.tensor([[1.0, 2.0, 3.0, 4.0]]))
    >>> y, operator.singular_values()
    (tensor([[ 5.+0.j, -1.+1.j]]), tensor([1.0000, 0.7071, 0.7071, 0.0000], dtype=torch.float64))
    """

    mask: Tensor
    _places: Tensor
    _partner: Tensor
    _paired: Tensor

    def __init__(self, mask: Any, domain: int | Sequence[int] | None = None, *, complex_domain: bool = False) -> None:
        super().__init__()
        values = constant(self, "mask", mask)
        if not bool(((values == 0) | (values == 1)).all()) or not bool(values.any()):
            raise UserError("FourierMask: the mask has values beside 0 and 1 or sees nothing: give booleans, True if measured")
        self.domain = torch.Size(values.shape) if domain is None else shape_of(self, domain)
        lead = len(self.domain) - values.dim()
        if values.dim() == 0 or self.domain[max(lead, 0) :] != values.shape:
            raise UserError(
                f"FourierMask: the mask has shape {tuple(values.shape)}, expected that of the last dimensions of "
                f"{tuple(self.domain)}"
            )
        self._dims = tuple(range(-values.dim(), 0))
        self._lead = self.domain[:lead]
        self.complex_domain = complex_domain
        self.register_buffer("mask", values.bool())
        flat = self.mask.flatten()
        partner = torch.arange(flat.numel()).reshape(self.mask.shape)
        partner = partner.flip(self._dims).roll((1,) * len(self._dims), self._dims).flatten()  # of frequency k: that of -k
        places = flat.nonzero()[:, 0]
        self.range = torch.Size([*self._lead, len(places)])
        self.isometry = 1.0 if complex_domain else None
        self.closed_gram = True
        for name, entry in (("_places", places), ("_partner", partner), ("_paired", flat & flat[partner])):
            self.register_buffer(name, entry, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        spectrum = torch.fft.fftn(self.check_input(x), dim=self._dims, norm="ortho")
        return spectrum.flatten(-len(self._dims)).index_select(-1, self._places)

    def adjoint(self, y: Tensor) -> Tensor:
        spectrum = self._full(self.check_output(y)).reshape(len(y), *self.domain)
        x = torch.fft.ifftn(spectrum, dim=self._dims, norm="ortho")
        return x if self.complex_domain else x.real

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        if self.complex_domain:
            return super().gram_solve(r, shift)
        shift = self.rows(shift, self.check_output(r))
        full = self._full(r)
        swapped = full.index_select(-1, self._partner).conj()
        even, odd = 0.5 * (full + swapped), 0.5 * (full - swapped)
        odd = torch.where(shift > 0, odd / torch.where(shift > 0, shift, 1), 0)
        solved = torch.where(self._paired, even / (1 + shift) + odd, full / (0.5 + shift))
        return solved.index_select(-1, self._places)

    def singular_values(self) -> Tensor | None:
        if self.complex_domain:
            return super().singular_values()
        paired = int(self._paired.sum())
        single = len(self._places) - paired
        zeros = min(self.mask.numel(), 2 * len(self._places)) - paired - 2 * single
        one = torch.tensor([1.0, 0.5**0.5, 0.0], dtype=torch.float64, device=self.mask.device)
        values = one.repeat_interleave(torch.tensor([paired, 2 * single, zeros], device=self.mask.device))
        return values.repeat(math.prod(self._lead)).sort(descending=True).values

    def _full(self, y: Tensor) -> Tensor:
        """On the whole grid (B, *lead, N), 0 where nothing is measured; complex."""
        y = y if y.is_complex() else torch.complex(y, torch.zeros_like(y))
        zeros = y.new_zeros(*y.shape[:-1], self.mask.numel())
        return zeros.index_copy(y.dim() - 1, self._places, y)

    def extra_repr(self) -> str:
        return f"{len(self._places)} of {self.mask.numel()} frequencies of {tuple(self.domain)}"
