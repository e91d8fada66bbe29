"""Flow matching of parameters and data together, with random parts of them known."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.amortised.joint_network import JointNetwork
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge
from sciflow.transport.times import PowerLaw, TimePrior

__all__ = ["JointMatching"]


class JointMatching(TransportObjective):
    r"""E |v(tokens, t) - (x_1 - x_0)|^2 over tokens that are not known, x_t = t x_1 + (1 - t) x_0 there.

    Which tokens are known is drawn anew for each row: the data (the posterior), the parameters (the likelihood), nothing, or
    each token with probability 0.3 or 0.7. To learn the other conditionals makes the network find out which entry of the data
    depends on which parameters, and a few thousand simulations are enough for it. In validation the data are known.

    Arguments:
        shares: probabilities of (posterior, joint, likelihood, 0.3, 0.7).
        missing: probability that, in rows of the last two kinds, data that are not known are missing altogether.
        times: where along the path.

    Source: All-in-one simulation-based inference, Gloeckler et al. 2024, arXiv 2404.09636.
    """

    def __init__(
        self, shares: Sequence[float] = (0.4, 0.2, 0.1, 0.15, 0.15), *, missing: float = 0.3, times: TimePrior | None = None
    ) -> None:
        super().__init__(times=PowerLaw(1.0) if times is None else times)
        if len(shares) != 5 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6 or shares[0] <= 0:
            raise UserError(f"shares={tuple(shares)}: give five probabilities that sum to 1, the first of them > 0")
        self.shares, self.missing = tuple(shares), missing
        self.edges = torch.tensor(self.shares).cumsum(0)

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not isinstance(flow, TransportFlow) or not isinstance(flow.network, JointNetwork):
            raise UserError("JointMatching trains a TransportFlow whose network is a JointNetwork")
        network, rows = flow.network, len(batch.x)
        context = flow.encoder(batch.condition)
        assert context is not None
        y, present = network.split(context.to(batch.x.dtype))
        known, present = self.known(flow.training, batch.x, present)
        size = network.parameters_count
        latent = ~known
        x0, y0 = torch.randn_like(batch.x), torch.randn_like(y)
        t, weight = self.times(rows, batch.x)
        s = t.unsqueeze(1)
        xt = torch.where(latent[:, :size], s * batch.x + (1 - s) * x0, batch.x)
        yt = torch.where(latent[:, size:].unsqueeze(2), s.unsqueeze(2) * y + (1 - s.unsqueeze(2)) * y0, y)
        vx, vy = network.velocities(xt, yt, t, known, present, data=flow.training)
        loss = ((vx - batch.x + x0).square() * latent[:, :size]).sum(1)
        count = latent[:, :size].sum(1)
        if vy is not None:
            wanted = (latent[:, size:] & present).unsqueeze(2).to(vy.dtype)
            loss = loss + ((vy - y + y0).square() * wanted).flatten(1).sum(1)
            count = count + wanted.sum((1, 2)) * network.entry
        loss = loss / count.clamp_min(1)
        return loss if weight is None else loss * weight

    def known(self, training: bool, x: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """Which tokens are known (B, D + places), and which data are present."""
        rows, size, places = len(x), x.shape[1], present.shape[1]
        is_data = torch.arange(size + places, device=x.device) >= size
        if not training:
            return is_data.expand(rows, -1), present
        kind = torch.bucketize(torch.rand(rows, 1), self.edges[:-1], right=True).to(x.device)
        chance = torch.where(kind == 3, 0.3, 0.7)
        picked = torch.rand(rows, size + places, device=x.device) < chance
        known = torch.where(kind == 0, is_data, (kind == 2) & ~is_data)
        known = torch.where(kind >= 3, picked, known)
        gone = (kind >= 3) & (torch.rand(rows, 1, device=x.device) < self.missing) & ~known[:, size:]
        return known, present & ~gone

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        raise NotImplementedError  # `forward` does it all: part of the points stay where they are

    def extra_repr(self) -> str:
        return f"shares={self.shares}, missing={self.missing}, times={self.times!r}"
