"""The closed-form average velocity of a Gaussian pair, as a two-time network: what few-step objectives are tested on."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.networks.time_network import TimeNetwork

__all__ = ["GaussianAverage"]


class GaussianAverage(TimeNetwork):
    r"""Linear path from N(0, 1) to N(m, sigma^2 1). x_t ~ N(t m, c_t 1) with c_t = t^2 sigma^2 + (1 - t)^2, and the flow
    keeps standard scores: X_ts(x) = s m + sqrt(c_s / c_t) (x - t m), so u(x, t, s) = (X_ts(x) - x) / (s - t). On the diagonal
    u = m + c_t' / (2 c_t) (x - t m), c_t' = 2 t sigma^2 - 2 (1 - t).

    `off` is what is wrong: a small network is added, whose last layer is 0, so that its gradient is that of the loss with
    respect to a function of (x, t, s).
    """

    two_time = True

    def __init__(self, mean: tuple[float, ...] = (1.5, -0.5), sigma: float = 0.5) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels, self.sigma = torch.Size((len(mean),)), 0, 1, sigma
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float64))
        self.off = nn.Sequential(nn.Linear(len(mean) + 2, 8), nn.Tanh(), nn.Linear(8, len(mean))).double()
        nn.init.zeros_(self.off[2].weight)
        nn.init.zeros_(self.off[2].bias)

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        exact = self.exact(x, t.unsqueeze(1), s.unsqueeze(1))
        return (exact + self.off(torch.cat([x, t.unsqueeze(1), s.unsqueeze(1)], 1))).unsqueeze(1)

    def exact(self, x: Tensor, t: Tensor, s: Tensor) -> Tensor:
        spread = t**2 * self.sigma**2 + (1 - t) ** 2
        later = s**2 * self.sigma**2 + (1 - s) ** 2
        centred = x - t * self.mean
        diagonal = self.mean + (t * self.sigma**2 - (1 - t)) / spread * centred
        gap = torch.where(s == t, torch.ones_like(s), s - t)
        return torch.where(s == t, diagonal, self.mean + (torch.sqrt(later / spread) - 1) / gap * centred)
