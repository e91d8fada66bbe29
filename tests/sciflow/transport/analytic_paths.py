"""Posterior means of a Gaussian mixture on any affine path, and of coupled normals on a noisy one, in closed form."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.transport.paths import AffinePath, Linear, NoisyPath

__all__ = ["AffineMixture", "NoisyNormals"]


class AffineMixture(TimeNetwork):
    r"""x_0 ~ N(0, 1), x_1 ~ sum_k w_k N(m_k, sigma_k^2 1), x_t = a x_1 + s x_0, for events of any shape.

    Given k, r = x_t - a m_k ~ N(0, c 1) with c = a^2 sigma_k^2 + s^2, so E[x_1] = m_k + a sigma_k^2 r / c, E[x_0] = s r / c
    and the score is -r / c. As a network it says `what`.
    """

    def __init__(
        self, path: AffinePath | None = None, means: Sequence = ((1.5,), (-1.0,)), sigmas: Sequence[float] = (0.6, 0.9),
        weights: Sequence[float] = (0.3, 0.7), what: str = "velocity",
    ) -> None:  # fmt: skip
        super().__init__()
        self.path, self.what = path or Linear(), what
        self.register_buffer("means", torch.tensor(means, dtype=torch.float64))
        self.register_buffer("sigmas", torch.tensor(sigmas, dtype=torch.float64))
        self.register_buffer("weights", torch.tensor(weights, dtype=torch.float64))
        self.event_shape, self.context, self.channels = self.means.shape[1:], 0, 1

    def posterior(self, x: Tensor, a: Tensor, s: Tensor) -> dict[str, Tensor]:
        """Endpoint, noise and score at rows x for coefficients () or (B,)."""
        column = (-1, 1, *[1] * len(self.event_shape))
        a, s = a.expand(len(x)).reshape(column), s.expand(len(x)).reshape(column)
        means, sigmas = self.means.to(x.dtype), self.sigmas.to(x.dtype).reshape(1, *column[:1], *column[2:])
        c = a**2 * sigmas**2 + s**2
        r = x.unsqueeze(1) - a * means
        size = math.prod(self.event_shape)
        log_p = self.weights.to(x.dtype).log() - 0.5 * (r.square() / c).flatten(2).sum(2) - 0.5 * size * c.flatten(1).log()
        p = torch.softmax(log_p, 1).reshape(*c.shape)
        return {
            "endpoint": (p * (means + a * sigmas**2 * r / c)).sum(1),
            "noise": (p * (s * r / c)).sum(1),
            "score": -(p * r / c).sum(1),
        }

    def quantities(self, x: Tensor, t: Tensor) -> dict[str, Tensor]:
        a, s, da, ds = self.path.coefficients(t.to(x.dtype))
        found = self.posterior(x, a, s)
        found["velocity"] = expand_time(da, x) * found["endpoint"] + expand_time(ds, x) * found["noise"]
        return found

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        return self.quantities(x, t)[self.what].unsqueeze(1)

    def sample(self, rows: int) -> Tensor:
        k = torch.multinomial(self.weights, rows, replacement=True)
        scale = self.sigmas[k].reshape(-1, *[1] * len(self.event_shape))
        return self.means[k] + scale * torch.randn(rows, *self.event_shape, dtype=torch.float64)

    def cdf(self, x: Tensor) -> Tensor:
        """Of one-dimensional data at t = 1, x (B, 1) -> (B,)."""
        return (self.weights * torch.special.ndtr((x - self.means[:, 0]) / self.sigmas)).sum(1)

    def log_prob(self, x: Tensor) -> Tensor:
        r = (x.unsqueeze(1) - self.means).flatten(2) / self.sigmas.reshape(1, -1, 1)
        log_p = self.weights.log() - 0.5 * r.square().sum(2) - r.shape[2] * (self.sigmas.log() + 0.5 * math.log(2 * math.pi))
        return torch.logsumexp(log_p, 1)


class NoisyNormals(TimeNetwork):
    r"""Two channels (w, n) of a noisy path on the straight line between jointly normal x_0, x_1 in R^D, features independent.

    x_0 ~ N(m_0, s_0^2), x_1 ~ N(m_1, s_1^2) with covariance rho s_0 s_1; all is linear regression on
    x_t = t x_1 + (1 - t) x_0 + gamma eps.
    """

    def __init__(self, path: NoisyPath, means=(0.5, -1.0), deviations=(1.5, 0.6), rho: float = 0.4, size: int = 1) -> None:
        super().__init__()
        self.path, self.moments, self.rho = path, (means, deviations), rho
        self.event_shape, self.context, self.channels = torch.Size((size,)), 0, 2

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        (m0, m1), (s0, s1) = self.moments
        t, c = t.reshape(-1, 1), self.rho * s0 * s1
        gamma = self.path.gamma(t)
        variance = t**2 * s1**2 + (1 - t) ** 2 * s0**2 + 2 * t * (1 - t) * c + gamma**2
        r = (x - t * m1 - (1 - t) * m0) / variance
        w = m1 - m0 + (t * s1**2 - (1 - t) * s0**2 + (1 - 2 * t) * c) * r
        return torch.stack([w, gamma * r], 1)
