"""Closed-form velocities of solvable pairs, as networks: what tests compare with."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.networks.time_network import TimeNetwork

__all__ = ["GaussianMixtureVelocity"]


class GaussianMixtureVelocity(TimeNetwork):
    r"""E[x_1 - x_0 | x_t] on the linear path from N(0, 1) to sum_k w_k N(m_k, sigma_k^2 1) in R^D, exactly.

    Given component k, (x_1, x_t) are jointly normal: x_t ~ N(t m_k, c_k 1), c_k = t^2 sigma_k^2 + (1 - t)^2, so
    E[x_1 - x_0 | x_t, k] = m_k + (t sigma_k^2 - (1 - t)) / c_k (x_t - t m_k).
    """

    def __init__(self, means: Sequence[Sequence[float]], sigmas: Sequence[float], weights: Sequence[float] | None = None):
        super().__init__()
        self.event_shape, self.context, self.channels = torch.Size((len(means[0]),)), 0, 1
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64))
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float64))
        self.register_buffer("log_weights", torch.tensor(weights or [1 / len(means)] * len(means)).double().log())

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        means, sigmas = self.means.to(x.dtype), self.sigmas.to(x.dtype)
        t = t.reshape(-1, 1)
        variance = t**2 * sigmas**2 + (1 - t) ** 2  # (B, K)
        residual = x[:, None] - t[:, :, None] * means  # (B, K, D)
        size = x.shape[1]
        log_p = self.log_weights.to(x.dtype) - 0.5 * residual.square().sum(2) / variance - 0.5 * size * variance.log()
        p = torch.softmax(log_p, 1)
        velocity = means + ((t * sigmas**2 - (1 - t)) / variance)[:, :, None] * residual
        return (p[:, :, None] * velocity).sum(1, keepdim=True)

    def log_prob(self, x: Tensor) -> Tensor:
        """The exact log-density at t = 1."""
        size = x.shape[1]
        residual = (x[:, None] - self.means) / self.sigmas[:, None]
        log_p = self.log_weights - 0.5 * residual.square().sum(2) - size * (self.sigmas.log() + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(log_p, 1)
