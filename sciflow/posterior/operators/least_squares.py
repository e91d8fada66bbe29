"""Least squares for rows by conjugate gradients that never form A' A."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["least_squares"]

_LOOK = 8  # iterations between two looks at the residual: each is a host synchronisation
_TOLERANCE = 1e-12


def least_squares(
    forward: Callable[[Tensor], Tensor], adjoint: Callable[[Tensor], Tensor], y: Tensor, iterations: int
) -> Tensor:
    """x (B, *domain) of least norm that makes |A x - y| smallest, for rows y (B, *range). Not differentiable in A.

    A row has converged when |y - A x| <= e |y|, which is an error of x of cond(A) e, or when |A' (y - A x)| <= e |A| |y - A x|
    (y is not in the range of A), with e = 1e-12, or 4 epsilon of y's precision if that is larger. (Conjugate gradients for
    A' A x = A' y, stopped by the residual of these, leave an error of cond(A)^2 e.)

    Rows of y that are not finite come back as NaN. Raises `UserError` with the worst residual if it does not converge.

    Source: Methods of Conjugate Gradients for Solving Linear Systems, Hestenes and Stiefel 1952; LSQR: An Algorithm for Sparse
    Linear Equations and Sparse Least Squares, Paige and Saunders 1982 (when to stop).
    """
    e = max(_TOLERANCE, 4 * torch.finfo(y.real.dtype).eps) ** 2

    def square(a: Tensor) -> Tensor:
        parts = torch.view_as_real(a.resolve_conj()) if a.is_complex() else a
        return parts.reshape(len(a), -1).square().sum(-1)

    def wide(value: Tensor, like: Tensor) -> Tensor:
        return value.reshape(-1, *[1] * (like.dim() - 1))

    residual, direction = y, adjoint(y)
    x = torch.zeros_like(direction)
    start, slope, size = square(y), square(direction), square(y).new_zeros(len(y))  # |y|^2, |A' r|^2, |A|^2 as far as seen
    going = start > 0
    for k in range(iterations):
        rest = square(residual)
        going = (rest > e * start) & (slope > e * size * rest)
        if k % _LOOK == 0 and not bool(going.any()):
            return torch.where(wide(start.isfinite(), x), x, torch.nan)
        image = forward(direction)
        curvature, length = square(image), square(direction)
        going = going & (curvature > 0)
        size = torch.maximum(size, torch.where(going, curvature / torch.where(going, length, 1), 0))
        step = torch.where(going, slope / torch.where(going, curvature, 1), 0)
        x, residual = x + wide(step, x) * direction, residual - wide(step, y) * image
        gradient = adjoint(residual)
        new = square(gradient)
        turn = torch.where(going, new / torch.where(going, slope, 1), 0)
        direction = gradient + wide(turn, x) * direction
        slope = torch.where(going, new, slope)
    if bool(going.any()):
        worst = float((square(residual) / start)[going].max()) ** 0.5
        raise UserError(
            f"least squares: {int(going.sum())} of {len(y)} rows did not converge in {iterations} iterations (residual "
            f"{worst:.1e} of |y|): the operator is badly conditioned, so take normal_solve(adjoint(y), shift) with "
            "shift > 0, or more `iterations`; or its adjoint is wrong (see check_adjoint)"
        )
    return torch.where(wide(start.isfinite(), x), x, torch.nan)
