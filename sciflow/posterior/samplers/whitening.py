"""Coordinates in which a target looks like a standard normal, as far as an affine map can make it."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.target import Target

__all__ = ["Whitened", "pooled_root"]


class Whitened:
    r"""u = centre + root w for flat w (B, n): with root = L, L L' the covariance of u, w has unit covariance.

    Moves with unit masses in w are moves with mass (L L')^-1 in u. Rows that are not finite, or whose powers are not, have
    log-density -inf.

    Arguments:
        target: in R^n, counts its calls.
        centre: (n,).
        root: standard deviations (n,), or a lower triangular matrix (n, n).
    """

    def __init__(self, target: Target, centre: Tensor, root: Tensor) -> None:
        self.target, self.centre, self.root = target, centre, root

    def outward(self, w: Tensor) -> Tensor:
        """u (B, *event)."""
        flat = self.centre + (w * self.root if self.root.dim() == 1 else w @ self.root.T)
        return flat.reshape(len(w), *self.target.event_shape)

    def inward(self, u: Tensor) -> Tensor:
        """w (B, n)."""
        flat = u.reshape(len(u), -1) - self.centre
        if self.root.dim() == 1:
            return flat / self.root
        return torch.linalg.solve_triangular(self.root, flat.T, upper=False).T

    def log_prob(self, w: Tensor) -> Tensor:
        """log p~ (B,) in u: the constant determinant of the map is left out."""
        finite, u = self._finite(w)
        with torch.no_grad():
            return self._value(finite, self.target.log_prob(u))

    def density(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """log p~ (B,) and its gradient in w (B, n)."""
        finite, u = self._finite(w)
        value, gradient = self.target.value_and_gradient(u)
        gradient = gradient.reshape(len(w), -1)
        return self._value(finite, value), gradient * self.root if self.root.dim() == 1 else gradient @ self.root

    def _finite(self, w: Tensor) -> tuple[Tensor, Tensor]:
        finite = (w.abs() < torch.finfo(w.dtype).max ** 0.2).all(1)  # a trajectory that went astray, not NaN of the target
        return finite, self.outward(torch.where(finite[:, None], w, 0))

    @staticmethod
    def _value(finite: Tensor, value: Tensor) -> Tensor:
        return torch.where(finite & ~value.isnan(), value, -torch.inf)


def pooled_root(u: Tensor, dense: bool) -> tuple[Tensor, Tensor]:
    """Centre (n,) and root of the covariance of rows u (N, n), shrunk to its diagonal as by five more rows.

    >>> centre, root = pooled_root(torch.tensor([[0.0], [2.0], [4.0], [6.0]]), dense=False)
    >>> centre, root.shape
    (tensor([3.]), torch.Size([1]))
    """
    count, centre = len(u), u.mean(0)
    centred = u - centre
    variance = centred.square().sum(0) / max(count - 1, 1)
    variance = torch.where(variance > 0, variance, torch.ones_like(variance))
    if not dense:
        return centre, variance.sqrt()
    share = count / (count + 5)
    covariance = share * (centred.T @ centred) / max(count - 1, 1)
    covariance.diagonal().add_((1 - share + 1e-9) * variance)
    root, failed = torch.linalg.cholesky_ex(covariance)
    return (centre, variance.sqrt()) if int(failed) else (centre, root)
