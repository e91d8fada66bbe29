"""Configurations without centre of mass."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from sciflow.transport.spaces.base import Space

__all__ = ["MeanFreeSpace"]


class MeanFreeSpace(Space):
    r"""N points in d dimensions with sum_i x_i = 0: the subspace of dimension (N - 1) d that `MeanFreeNormal` lives on.

    The velocity loses its mean over the points, P v = v - mean_i v_i, so that no trajectory leaves the subspace; the
    divergence is that along the subspace, sum_k (P e_k)^T (dV/dx) e_k, and densities are with respect to its volume. With a
    mask the mean runs over the present points.

    Data must be mean-free, as the base: `project` makes them so.

    Source: Equivariant Flows: Exact Likelihood Generative Learning for Symmetric Densities, Köhler et al. 2020,
    arXiv 2006.02425.

    >>> MeanFreeSpace().tangent(torch.zeros(1, 2, 1), torch.tensor([[[1.0], [3.0]]])).squeeze()
    tensor([-1.,  1.])
    """

    # straight lines and addition, but the Lebesgue measure is that of the subspace
    straight = True
    _mask: Tensor | None = None

    def masked(self, mask: Tensor | None) -> Space:
        if mask is None:
            return self
        bound = copy.copy(self)
        bound._mask = mask
        return bound

    def project(self, x: Tensor) -> Tensor:
        return self._centred(x)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self._centred(v)

    def step(self, x: Tensor, increment: Tensor) -> Tensor:
        return x + increment  # a sum of tangent vectors, which lie in the subspace already

    def contains(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        present = x if mask is None else torch.where(mask, x, 0)
        scale = present.abs().flatten(1).amax(1).clamp_min(1)
        total = present.sum(-2).abs().flatten(1).amax(1)
        return torch.isfinite(x).flatten(1).all(1) & (total <= 1e3 * torch.finfo(x.dtype).eps * x.shape[-2] * scale)

    def _centred(self, v: Tensor) -> Tensor:
        mask = self._mask
        if mask is None:
            return v - v.mean(-2, keepdim=True)
        present = torch.where(mask, v, 0)
        count = mask.sum(-2, keepdim=True).clamp_min(1).to(v.dtype)
        return torch.where(mask, v - present.sum(-2, keepdim=True) / count, 0)
