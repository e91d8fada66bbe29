"""The contract of an operator: what a measurement does to x."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.operators.conjugate_gradient import conjugate_gradient
from sciflow.posterior.operators.least_squares import least_squares
from sciflow.posterior.randomness import Randomness
from sciflow.recorded import Recorded

__all__ = ["Linear", "Operator", "inner_product", "shape_of"]


class Operator(nn.Module, Recorded, ABC):
    """y = A(x) for rows x (B, *domain) -> (B, *range). Differentiable; data and result may be complex.

    Constants are buffers, so `.to(device)` works; `.to(dtype)` with a real dtype changes the precision of complex ones, which
    have no half precision and then keep their own. Spaces carry the real inner product Re <a, b>, of which adjoints and
    gradients speak. Draws of flows are real; `ToComplex` turns pairs of real channels into the complex images that an
    operator with `complex_domain` wants. `a @ b` is a after b.

    Attributes:
        complex_domain: whether x has to be complex (True), has to be real (False), or may be either (None).
    """

    domain: torch.Size
    range: torch.Size
    complex_domain: bool | None = None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor: ...

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        """J(x)' y, the adjoint of the derivative at x: (B, *domain)."""
        self.check_output(y)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            (out,) = torch.autograd.grad(self(point), point, y)
        return out

    def check_input(self, x: Tensor) -> Tensor:
        """x, or `ValueError` with both shapes, or if it is real where it must be complex or the other way round."""
        if self.complex_domain is not None and x.is_complex() is not self.complex_domain:
            given, wanted = ("complex", "real") if x.is_complex() else ("real", "complex")
            hint = "" if x.is_complex() else ": put ToComplex before it"
            raise ValueError(f"{type(self).__name__}: x is {given} {tuple(x.shape)}, expected {wanted} numbers{hint}")
        return _shaped(self, "x", x, self.domain)

    def check_output(self, y: Tensor) -> Tensor:
        """y, or `ValueError` with both shapes."""
        return _shaped(self, "y", y, self.range)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        return super()._apply(_complex_as_pairs(fn), recurse)

    def __matmul__(self, other: Any) -> Operator:
        from sciflow.posterior.operators.composition import compose

        return compose(self, other) if isinstance(other, Operator) else NotImplemented

    def extra_repr(self) -> str:
        return f"{tuple(self.domain)} -> {tuple(self.range)}"


class Linear(Operator):
    r"""A linear operator with adjoint A', pseudo-inverse A^+ and the solutions of (A A' + c I) z = r.

    Authors write `forward` and `adjoint`, and override what they know in closed form: `gram_solve`, `normal_solve`,
    `pseudo_inverse`, `singular_values`. The defaults of both solutions are conjugate gradients to a relative residual of
    `tolerance`: the error of a solution may be larger by the condition number of its matrix. Of the others see `least_squares`.

    Attributes:
        tolerance, iterations: of conjugate gradients.
        any_precision: whether it takes double precision, whatever its constants are. Pseudo-inverse and projections are then
            computed in it; by default in operators of this library alone.
        isometry: c if A A' = c I (rows are orthogonal and of one length), else None. All the rest follows from it.
        closed_gram: whether `gram_solve` is a closed form that takes any r at shift 0: then the others follow from it.
    """

    tolerance: float = 1e-6
    iterations: int = 1000
    isometry: float | None = None
    closed_gram: bool = False

    @property
    def any_precision(self) -> bool:
        parts = [part for part in self.modules() if isinstance(part, Linear) and part is not self]
        return type(self).__module__.partition(".")[0] == "sciflow" and all(part.any_precision for part in parts)

    @abstractmethod
    def adjoint(self, y: Tensor) -> Tensor:
        """A' y (B, *domain): Re <A x, y> = Re <x, A' y>."""

    def gram_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        """z (B, *range) with (A A' + shift I) z = r, shift >= 0 a number or (B,). Differentiable in r.

        Where shift is 0, r has to be in the range of A; closed forms return the least-squares solution of least norm.

        Raises `UserError` if the iteration does not converge.
        """
        self.check_output(r)
        if self.isometry is not None:
            return r / (self.isometry + self.rows(shift, r))
        return conjugate_gradient(lambda z: self(self.adjoint(z)), r, self.rows(shift, r), self.tolerance, self.iterations)

    def marginal_solve(self, r: Tensor, signal: Tensor, noise: float | Tensor) -> Tensor:
        """z (B, *range) with (signal A A' + noise I) z = r: r whitened by the covariance of A x + e, for x of variance `signal`
        ((B,) or a number tensor, 0 allowed) and e of variance `noise` > 0."""
        noise = torch.as_tensor(noise, dtype=r.real.dtype, device=r.device)
        scale = torch.maximum(signal.to(r.real.dtype), 1e-12 * noise)  # there A A' is nothing beside the noise
        wide = scale.reshape(-1, *[1] * (r.dim() - 1))
        return self.gram_solve(r / wide, noise / scale)

    def normal_solve(self, r: Tensor, shift: float | Tensor) -> Tensor:
        """x (B, *domain) with (A' A + shift I) x = r; where shift is 0, r has to be in the range of A'."""
        self.check_input(r)
        if self.isometry is not None or self.closed_gram:
            wide = self.rows(shift, r)
            inside = self.gram_solve(self(r), 0.0)
            hidden = r - self.adjoint(inside)  # what A does not see, where only the shift acts
            hidden = torch.where(wide > 0, hidden / torch.where(wide > 0, wide, 1), 0)
            return self.adjoint(self.gram_solve(inside, shift)) + hidden
        return conjugate_gradient(lambda x: self.adjoint(self(x)), r, self.rows(shift, r), self.tolerance, self.iterations)

    def normal_noise(self, rows: int, shift: float, randomness: Randomness) -> Tensor:
        """Draws of N(0, (A'A + shift)^-1), shift > 0: (rows, *domain), complex if x has to be.

        By solving for A' e_1 + sqrt(shift) e_2 with standard normal e_1 and e_2, whose covariance is A'A + shift; override it
        where a root is known.
        """

        def standard(shape: torch.Size, pairs: bool) -> Tensor:
            values = randomness.normal(rows, (*shape, 2) if pairs else shape)
            return torch.view_as_complex(values) if pairs else values

        inside = standard(self.domain, self.complex_domain is True)
        probe = self(inside[:1])
        outside = standard(self.range, probe.is_complex())
        return self.normal_solve(self.adjoint(outside) + math.sqrt(shift) * inside, shift)

    def pseudo_inverse(self, y: Tensor) -> Tensor:
        """A^+ y (B, *domain), the least-squares solution of least norm, for any y.

        Raises `UserError` if the iteration does not reach 12 digits (or those of y, where only they are computed).
        """
        if self.isometry is not None or self.closed_gram:
            return self.adjoint(self.gram_solve(y, 0.0))
        found = least_squares(self, self.adjoint, self._wide(self.check_output(y)), self.iterations)
        return found.to(y.real.dtype.to_complex() if found.is_complex() else y.real.dtype)

    def range_projection(self, x: Tensor) -> Tensor:
        """A^+ A x: what is measured of x."""
        return self.pseudo_inverse(self(self._wide(x))).to(x.dtype)

    def _wide(self, x: Tensor) -> Tensor:
        # A^+ magnifies rounding errors by the condition number of A
        return x.to(torch.promote_types(x.dtype, torch.float64)) if self.any_precision else x

    def null_projection(self, x: Tensor) -> Tensor:
        """x - A^+ A x: what the measurement does not see of x."""
        return x - self.range_projection(x)

    def singular_values(self) -> Tensor | None:
        """All min(dim domain, dim range) singular values, largest first, where they are cheap; else None.

        Dimensions are complex where the domain is; where it is real, complex results have two real ones.
        """
        if self.isometry is None or not self.isometry > 0:
            return None
        device = next((b.device for b in self.buffers()), None)
        return torch.full((math.prod(self.range),), self.isometry**0.5, dtype=torch.float64, device=device)

    def vjp(self, x: Tensor, y: Tensor) -> Tensor:
        return self.adjoint(y)

    def matrix(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """A as a matrix, for tests and small problems: complex if the domain is complex, else real, where a complex result
        makes two rows (real part, imaginary part)."""
        size = math.prod(self.domain)
        if size > 4096:
            raise UserError(f"{type(self).__name__} on {size} features: its matrix would be too large")
        kind = dtype.to_complex() if self.complex_domain else dtype
        basis = torch.eye(size, dtype=kind, device=next(self.buffers(), torch.empty(0)).device)
        out = self(basis.reshape(size, *self.domain))
        pairs = out.is_complex() and not self.complex_domain
        return (torch.view_as_real(out) if pairs else out).reshape(size, -1).T

    @staticmethod
    def rows(shift: float | Tensor, r: Tensor) -> Tensor:
        """A number per row, (B or 1, 1, ..., 1), in the real dtype of r (B, ...). Raises `ValueError` for other shapes."""
        shift = torch.as_tensor(shift, dtype=r.real.dtype, device=r.device)
        if shift.dim() > 1 or shift.numel() not in (1, len(r)):
            raise ValueError(f"shift has shape {tuple(shift.shape)}, expected a number or ({len(r)},)")
        return shift.reshape(-1, *[1] * (r.dim() - 1))


def _complex_as_pairs(fn: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """What a module does to its tensors, done to complex ones as pairs: torch would drop their imaginary part."""

    def applied(value: Tensor) -> Tensor:
        if not value.is_complex():
            return fn(value)
        pairs = fn(torch.view_as_real(value.resolve_conj()))
        if pairs.is_complex():
            return fn(value)
        if pairs.dtype not in (torch.float32, torch.float64):
            return value.to(pairs.device)
        return torch.view_as_complex(pairs.contiguous())

    return applied


def inner_product(a: Tensor, b: Tensor) -> Tensor:
    """Re <a, b> of rows: (B,)."""
    product = (a * b.conj()).real if a.is_complex() or b.is_complex() else a * b
    return product.reshape(len(a), -1).sum(-1)


def shape_of(owner: Operator, shape: int | Sequence[int], name: str = "domain") -> torch.Size:
    """A shape given as an integer or as integers > 0. Raises `UserError` for anything else."""
    try:
        found = torch.Size([shape] if isinstance(shape, int) else shape)
    except TypeError:
        raise UserError(f"{type(owner).__name__}: {name} is {shape!r}, expected the shape of one row") from None
    if any(size < 1 for size in found):
        raise UserError(f"{type(owner).__name__}: {name} is {tuple(found)}, expected sizes > 0")
    return found


def _shaped(operator: Operator, name: str, x: Tensor, shape: torch.Size) -> Tensor:
    if x.dim() == 0 or x.shape[1:] != shape:
        raise ValueError(
            f"{type(operator).__name__}: {name} has shape {tuple(x.shape)}, expected (rows, {str(tuple(shape))[1:]}"
        )
    return x
