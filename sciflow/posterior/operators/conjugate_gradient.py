"""Conjugate gradients for rows, each with its own convergence."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["conjugate_gradient"]

_LOOK = 8  # iterations between two looks at the residual: each is a host synchronisation


def conjugate_gradient(
    matrix: Callable[[Tensor], Tensor], r: Tensor, shift: float | Tensor, tolerance: float, iterations: int
) -> Tensor:
    """z with (M + shift I) z = r for rows r (B, ...), M symmetric and positive semi-definite.

    `shift` is a number or (B,). Rows that have converged (relative residual below `tolerance`) stay as they are. A singular
    system without shift is solved in the range of M, where the residual can vanish. Not differentiable in M.

    Rows of r that are not finite come back as NaN. Raises `UserError` with the worst residual if it does not converge.
    """
    shift = torch.as_tensor(shift, dtype=r.real.dtype, device=r.device).reshape(-1, *[1] * (r.dim() - 1))

    def inner(a: Tensor, b: Tensor) -> Tensor:
        product = (a * b.conj()).real if a.is_complex() else a * b
        return product.reshape(len(a), -1).sum(-1).reshape(-1, *[1] * (a.dim() - 1))

    z, residual, direction = torch.zeros_like(r), r, r
    norm = start = inner(r, r)
    aim = start * max(tolerance, 4 * torch.finfo(r.real.dtype).eps) ** 2
    for k in range(iterations):
        if k % _LOOK == 0 and not bool((norm > aim).any()):
            return torch.where(start.isfinite(), z, torch.nan)
        image = matrix(direction) + shift * direction
        curvature = inner(direction, image)
        going = (norm > aim) & (curvature > 0)
        step = torch.where(going, norm / torch.where(going, curvature, 1), 0)
        z, residual = z + step * direction, residual - step * image
        new = inner(residual, residual)
        direction = residual + torch.where(going, new / torch.where(norm > 0, norm, 1), 0) * direction
        norm = torch.where(going, new, norm)
    worst = float((norm / start.clamp_min(torch.finfo(start.dtype).tiny)).max()) ** 0.5
    if worst > max(tolerance, 1e-3 * tolerance**0.5):
        raise UserError(
            f"conjugate gradients: relative residual {worst:.1e} after {iterations} iterations, wanted {tolerance:.0e}: "
            "the operator is badly conditioned, r is not in its range (at shift 0), or its adjoint is wrong (see check_adjoint)"
        )
    return torch.where(start.isfinite(), z, torch.nan)
