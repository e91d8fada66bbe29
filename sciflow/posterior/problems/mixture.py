"""Gaussian mixtures as flows whose velocity, density and draws are exact: priors of solvable problems."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.distribution import FlowDistribution
from sciflow.flows.draws import Draws
from sciflow.networks.time_network import TimeNetwork
from sciflow.noise import normal_from_uniform
from sciflow.transport.flow import TransportFlow

__all__ = ["GaussianMixtureFlow", "GaussianMixtureVelocity"]


class GaussianMixtureVelocity(TimeNetwork):
    r"""E[x_1 - x_0 | x_t] on the linear path from N(0, 1) to sum_k w_k N(m_k, S_k) in R^D, exactly.

    With S_k = Q diag(l) Q', x_t | k ~ N(t m_k, Q diag(c) Q'), c = t^2 l + (1 - t)^2, and

        E[x_1 - x_0 | x_t, k] = m_k + Q diag((t l - (1 - t)) / c) Q' (x_t - t m_k).
    """

    means: Tensor
    values: Tensor
    vectors: Tensor
    log_weights: Tensor

    def __init__(self, means: Any, covariances: Any, weights: Any = None) -> None:
        super().__init__()
        m, s = torch.as_tensor(means, dtype=torch.float64), torch.as_tensor(covariances, dtype=torch.float64)
        k, d = m.shape
        s = s.reshape(-1, 1, 1) * torch.eye(d, dtype=torch.float64) if s.dim() < 2 else s
        w = torch.full((k,), 1 / k, dtype=torch.float64) if weights is None else torch.as_tensor(weights, dtype=torch.float64)
        s = s.expand(k, d, d)
        if not all(bool(entry.isfinite().all()) for entry in (m, s, w)):
            raise UserError("a mixture needs means, covariances and weights that are finite")
        if not torch.allclose(s, s.mT, rtol=1e-8, atol=0):
            raise UserError("a mixture needs symmetric covariances")
        values, vectors = torch.linalg.eigh(s)
        if not bool((values > 0).all()) or not bool((w > 0).all()):
            raise UserError("a mixture needs positive weights and covariances that are positive definite")
        for name, entry in (("means", m), ("values", values), ("vectors", vectors), ("log_weights", (w / w.sum()).log())):
            self.register_buffer(name, entry)
        self.event_shape, self.context, self.channels = torch.Size([d]), 0, 1

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        t = t.to(x.dtype).reshape(-1, 1, 1)
        log_p, scaled, c = self.components(x, t)
        part = (t * self.values.to(x.dtype) - (1 - t)) / c * scaled
        velocity = self.means.to(x.dtype) + torch.einsum("kij,bkj->bki", self.vectors.to(x.dtype), part)
        return (log_p.softmax(1).unsqueeze(2) * velocity).sum(1, keepdim=True)

    def components(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """log w_k p_t(x | k) (B, K), Q'(x - t m_k) and c, both (B, K, D), at times t (B, 1, 1)."""
        residual = x.unsqueeze(1) - t * self.means.to(x.dtype)
        scaled = torch.einsum("kij,bki->bkj", self.vectors.to(x.dtype), residual)
        c = t**2 * self.values.to(x.dtype) + (1 - t) ** 2
        log_p = -0.5 * (scaled.square() / c + c.log() + math.log(2 * math.pi)).sum(2) + self.log_weights.to(x.dtype)
        return log_p, scaled, c


class GaussianMixtureFlow(TransportFlow):
    """sum_k w_k N(m_k, S_k) as a transport from the standard normal, exact in velocity, `log_prob` and draws.

    Arguments:
        means: (K, D).
        covariances: (K, D, D), (D, D), or variances (K,) or a number.
        weights: (K,), equal by default.
        dtype: of draws.

    >>> flow = GaussianMixtureFlow([[-2.0], [2.0]], 0.25)
    >>> flow().log_prob(torch.zeros(1, 1, dtype=torch.float64))
    tensor([-8.2258], dtype=torch.float64)
    """

    network: GaussianMixtureVelocity

    def __init__(
        self, means: Sequence[Any] | Tensor, covariances: Any, weights: Any = None, *, dtype: torch.dtype = torch.float64
    ) -> None:
        means, covariances, weights = (entry.tolist() if isinstance(entry, Tensor) else entry
                                       for entry in (means, covariances, weights))  # fmt: skip
        network = GaussianMixtureVelocity(means, covariances, weights)
        super().__init__(tuple(network.event_shape), network=network)
        self.dtype = dtype

    def forward(self, condition: Any = None, mask: Tensor | None = None) -> ExactMixture:
        return ExactMixture(self)

    def reference(self, context: Tensor | None = None) -> Tensor:
        return torch.empty(0, dtype=self.dtype, device=self.network.means.device)

    def responsibilities(self, x: Tensor) -> Tensor:
        """p(k | x) (B, K): which mode a point belongs to."""
        return self.network.components(x, torch.ones(len(x), 1, 1, dtype=x.dtype, device=x.device))[0].softmax(1)

    def mean(self) -> Tensor:
        """(D,)."""
        return self.network.log_weights.exp() @ self.network.means

    def covariance(self) -> Tensor:
        """(D, D)."""
        w, q, m = self.network.log_weights.exp(), self.network.vectors, self.network.means - self.mean()
        within = torch.einsum("k,kij,kj,klj->il", w, q, self.network.values, q)
        return within + torch.einsum("k,ki,kj->ij", w, m, m)

    def component_covariances(self) -> Tensor:
        """S_k (K, D, D)."""
        return torch.einsum("kij,kj,klj->kil", self.network.vectors, self.network.values, self.network.vectors)


class ExactMixture(FlowDistribution):
    """The distribution of a `GaussianMixtureFlow`: nothing is solved, a draw takes one uniform more, for its component."""

    flow: GaussianMixtureFlow

    @property
    def uniforms(self) -> int:
        return self.event_shape[0] + 1

    def log_prob(self, value: Tensor) -> Tensor:
        rows = value.reshape(-1, *self.event_shape)
        ones = torch.ones(len(rows), 1, 1, dtype=rows.dtype, device=rows.device)
        return self.flow.network.components(rows, ones)[0].logsumexp(1).reshape(value.shape[:-1])

    def draws(self, uniform: Tensor, *, density: bool = True) -> Draws:
        network = self.flow.network
        edges = network.log_weights.exp().cumsum(0)[:-1]
        k = (uniform[..., :1] > edges).sum(-1)
        z = normal_from_uniform(uniform[..., 1:]) * network.values[k].sqrt()
        x = (network.means[k] + torch.einsum("...ij,...j->...i", network.vectors[k], z)).to(self.flow.dtype)
        return Draws(x, self.log_prob(x) if density else None)

    def _draws(self, sample_shape: Any, *, density: bool) -> Draws:
        shape = (*torch.Size(sample_shape), self.uniforms)
        uniform = torch.rand(shape, dtype=torch.float64, device=self.flow.network.means.device)
        return self.draws(uniform.clamp_min(2.0**-54), density=density)
