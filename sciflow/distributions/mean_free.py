"""Normal noise without centre of mass."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.distributions.base import Base
from sciflow.noise import normal_from_uniform

__all__ = ["MeanFreeNormal"]


class MeanFreeNormal(Base):
    r"""N(0, 1) for N points in d dimensions restricted to sum_i z_i = 0:

        log p(z) = -|z|^2 / 2 - (N - 1) d / 2 log(2 pi),

    a density on the (N - 1) d dimensional subspace. Rows are (B, N, d) and must be mean-free; the density does not check.
    With a mask the mean runs over the present points and N is their number.

    Source: Equivariant Flows: Exact Likelihood Generative Learning for Symmetric Densities, Köhler et al. 2020,
    arXiv 2006.02425.

    >>> base = MeanFreeNormal(4, 3)
    >>> z = base.rsample(2, dtype=torch.float64)
    >>> z.shape, bool(z.mean(1).abs().max() < 1e-12)
    (torch.Size([2, 4, 3]), True)
    """

    def __init__(self, points: int, dimensions: int) -> None:
        super().__init__()
        self.event_shape = torch.Size((points, dimensions))

    @property
    def uniforms(self) -> int:
        return math.prod(self.event_shape)

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        return self._centred(normal_from_uniform(uniform).reshape(-1, *self.event_shape), mask)

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        return self._centred(torch.randn(rows, *self.event_shape, device=device, dtype=dtype), mask)

    def _centred(self, z: Tensor, mask: Tensor | None) -> Tensor:
        # the projection of a standard normal onto a subspace is a standard normal of that subspace
        if mask is None:
            return z - _mean(z, z.new_full((1, 1), self.event_shape[0]))
        z = torch.where(mask, z, 0)
        return torch.where(mask, z - _mean(z, mask.sum(1).clamp_min(1).to(z.dtype)), 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            return -0.5 * z.square().sum((1, 2)) - 0.5 * math.log(2 * math.pi) * (self.event_shape[0] - 1) * self.event_shape[1]
        free = (mask.sum(1) - 1).clamp_min(0).sum(1).to(z.dtype)
        return -0.5 * torch.where(mask, z, 0).square().sum((1, 2)) - 0.5 * math.log(2 * math.pi) * free


def _mean(z: Tensor, count: Tensor) -> Tensor:
    total = z[:, 0]
    for point in range(1, z.shape[1]):  # in a fixed order: the result does not depend on how rows are chunked
        total = total + z[:, point]
    return (total / count).unsqueeze(1)
