"""A matrix."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.operators.base import Linear

__all__ = ["Dense"]


class Dense(Linear):
    """y = A x for a matrix A (m, n); everything in closed form from its singular value decomposition.

    Arguments:
        weight: A, real or complex.
        complex_domain: for a complex matrix, whether x is complex; a real matrix takes both.

    Raises `UserError` if it is no matrix or not finite.

    >>> operator = Dense([[2.0, 0.0]])
    >>> operator.pseudo_inverse(operator(torch.tensor([[3.0, 4.0]])))
    tensor([[3., 0.]])
    """

    weight: Tensor
    _u: Tensor
    _s: Tensor
    _v: Tensor

    def __init__(self, weight: Any, *, complex_domain: bool = False) -> None:
        super().__init__()
        weight = constant(self, "weight", weight)
        weight = weight if weight.is_floating_point() or weight.is_complex() else weight.to(torch.get_default_dtype())
        if weight.dim() != 2 or not weight.numel() or not bool(weight.isfinite().all()):
            raise UserError(f"Dense: the matrix has shape {tuple(weight.shape)} or values that are not finite, expected (m, n)")
        self.register_buffer("weight", weight)
        self.domain, self.range = torch.Size([weight.shape[1]]), torch.Size([weight.shape[0]])
        self.complex_domain = complex_domain if weight.is_complex() else None
        self._pairs = weight.is_complex() and not complex_domain  # over the reals: real parts above imaginary ones
        whole = torch.cat([weight.real, weight.imag]) if self._pairs else weight
        u, s, v = torch.linalg.svd(whole.to(torch.complex128 if whole.is_complex() else torch.float64), full_matrices=False)
        for name, entry in (("_u", u), ("_s", s), ("_v", v)):
            self.register_buffer(name, entry, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.check_input(x)
        weight = matched(self.weight, x)
        return _times(x, weight.T)

    def adjoint(self, y: Tensor) -> Tensor:
        found = _times(self.check_output(y), matched(self.weight, y).conj())
        return found.real if self._pairs else found

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        r = self._split(self.check_output(r))
        u, s = matched(self._u, r), matched(self._s, r)
        shift = self.rows(shift, r)
        parts = _times(r, u.conj())
        total = s.square() + shift
        found = _times(torch.where(self._small(s) & (shift <= 0), 0, parts / torch.where(total > 0, total, 1)), u.T)
        rest = r - _times(parts, u.T)  # outside of the range of A only the shift acts
        return self._joined(found + torch.where(shift > 0, rest / torch.where(shift > 0, shift, 1), 0))

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        v, s = matched(self._v, self.check_input(r)), matched(self._s, r)
        shift = self.rows(shift, r)
        parts = _times(r, v.T)
        total = s.square() + shift
        found = _times(torch.where(self._small(s) & (shift <= 0), 0, parts / torch.where(total > 0, total, 1)), v.conj())
        return found + torch.where(shift > 0, (r - _times(parts, v.conj())) / torch.where(shift > 0, shift, 1), 0)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        y = self._split(self.check_output(y))
        s = matched(self._s, y)
        parts = _times(y, matched(self._u, y).conj())
        return _times(torch.where(self._small(s), 0, parts / torch.where(self._small(s), 1, s)), matched(self._v, y).conj())

    def singular_values(self) -> Tensor | None:
        return self._s

    def _small(self, s: Tensor) -> Tensor:
        """Singular values that are rounding errors in their precision."""
        return s <= s.amax() * (max(*self.weight.shape) * torch.finfo(s.dtype).eps)

    def _split(self, y: Tensor) -> Tensor:
        if not self._pairs:
            return y
        return torch.cat([y.real, y.imag], -1) if y.is_complex() else torch.cat([y, torch.zeros_like(y)], -1)

    def _joined(self, y: Tensor) -> Tensor:
        return torch.complex(*y.chunk(2, -1)) if self._pairs else y


def _times(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ matrix, either of them complex or not."""
    kind = torch.promote_types(x.dtype, matrix.dtype)
    return x.to(kind) @ matrix.to(kind)
