"""Data-dependent references without a likelihood: a cross-fitted regression of the parameters on the data."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["cross_fitted"]

_MOST = 2000


def cross_fitted(theta: Tensor, y: Tensor, *, folds: int = 2, ridge: float = 1e-3) -> tuple[Tensor, Tensor]:
    """m(y_i) (..., n, d) and a root R (..., n, d, d) with |R (theta_i - m(y_i))|^2 the squared Mahalanobis distance.

    m is the ridge regression of theta (..., n, d) on the features y (..., n, f) and, where there are enough rows, on their
    squares, fitted on the other folds: for a row, m and R depend on its data and on other simulations alone, so any quantity
    built of them has uniform ranks under an exact posterior. How well m fits decides on the power only.

    Leading dimensions are independent replicates.
    """
    n, f = y.shape[-2:]
    if f > _MOST:
        raise UserError(f"the data have {f} numbers a row, references by regression take at most {_MOST}: give features(y)")
    centre, spread = y.mean(-2, keepdim=True), y.std(-2, keepdim=True)
    z = (y - centre) / torch.where(spread > 0, spread, 1.0)
    columns = [torch.ones_like(z[..., :1]), z]
    if 2 * f + 1 <= n // (5 * folds):
        columns.append(z.square() - 1)
    x = torch.cat(columns, -1)
    fold = torch.arange(n, device=y.device) % folds
    mean = torch.empty_like(theta)
    root = theta.new_empty(*theta.shape, theta.shape[-1])
    eye = torch.eye(theta.shape[-1], dtype=theta.dtype, device=theta.device)
    for number in range(folds):
        inside, outside = fold == number, fold != number
        a, b = x[..., outside, :], theta[..., outside, :]
        gram = a.mT @ a / a.shape[-2]
        gram = gram + ridge * torch.eye(gram.shape[-1], dtype=y.dtype, device=y.device)
        weights = torch.linalg.solve(gram, a.mT @ b / a.shape[-2])
        residual = b - a @ weights
        covariance = residual.mT @ residual / a.shape[-2]
        scale = covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] + torch.finfo(theta.dtype).tiny
        factor = torch.linalg.cholesky(covariance + 1e-6 * scale * eye)
        inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
        mean[..., inside, :] = x[..., inside, :] @ weights
        root[..., inside, :, :] = inverse.unsqueeze(-3).expand(*inverse.shape[:-2], int(inside.sum()), *inverse.shape[-2:])
    return mean, root
