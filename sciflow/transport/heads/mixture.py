"""A Gaussian mixture of velocities: GMFlow."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.heads.base import Head, present_mean
from sciflow.transport.pair import Bridge
from sciflow.transport.paths.base import Path

__all__ = ["GaussianMixture"]


class GaussianMixture(Head):
    r"""q(u | xt) = sum_k w_k N(u; m_k, sigma^2 1), by its negative log-likelihood per feature; v = sum_k w_k m_k.

    Of the 2 K + 1 channels K are means, K logits and one the logarithm of sigma; logits and sigma belong to the whole
    event and are the averages of their channels over the present features.

    Arguments:
        components: K.
        floor: least sigma, in units of the velocity: data on points or lines would drive it to 0.

    Source: Gaussian Mixture Flow Matching Models, Chen et al. 2025, arXiv 2504.05304.
    """

    def __init__(self, components: int = 8, *, floor: float = 1e-3) -> None:
        if components < 1 or not floor > 0:
            raise UserError(f"components={components}, floor={floor}: give at least one component and a positive floor")
        self.components, self.floor = components, floor
        self.channels = 2 * components + 1

    def mixture(self, out: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Log-weights (B, K), means (B, K, *event) and standard deviation (B,) of the velocity."""
        k = self.components
        pooled = torch.stack([present_mean(channel, mask) for channel in out[:, k:].unbind(1)], 1)
        scale = torch.hypot(torch.exp(pooled[:, k]), pooled.new_full((), self.floor))
        return torch.log_softmax(pooled[:, :k], 1), out[:, :k], scale

    def velocity(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        log_weights, means, _ = self.mixture(out, mask)
        return torch.einsum("bk,bk...->b...", log_weights.exp(), means)

    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        mask = bridge.pair.mask
        log_weights, means, scale = self.mixture(out, mask)
        square = (means - bridge.ut.unsqueeze(1)).square().flatten(2)
        size = square.new_full((len(square),), float(square.shape[2]))
        if mask is not None:
            square = square.where(mask.flatten(1).unsqueeze(1), square.new_zeros(()))
            size = mask.flatten(1).sum(1).clamp_min(1).to(square.dtype)
        log_p = torch.logsumexp(log_weights - 0.5 * square.sum(2) / scale.square().unsqueeze(1), 1)
        return -log_p / size + torch.log(scale) + 0.5 * math.log(2 * math.pi)
