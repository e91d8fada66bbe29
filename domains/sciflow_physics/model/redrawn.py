"""Maximum likelihood in normal scores that does not learn by heart where random numbers put a point mass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.training import Batch, Objective
from sciflow_physics.model.sample import Sample
from sciflow_physics.model.transport import Transport

__all__ = ["Redrawn", "scores_of"]

_FEW = 5  # as in the marginals: a handful of rows is no mass with a range of its own


class Redrawn(Objective):
    r"""-log p(g | condition), with the place of each point mass within its range drawn anew in every step.

    In normal scores a point mass of probability p0 fills g < \Phi^{-1}(p0), uniformly in probability: any place there is as
    true as another, g = \Phi^{-1}(u p0) with u uniform. One draw per row and training would let a flow fit the draws, the
    more so the more frequent the mass. In evaluation the given places are used, so that validation does not fluctuate.

    Arguments:
        probability: p0 (N, D) for the entries that are a point mass, 0 for all others; rows by `Batch.index`.
    """

    probability: Tensor

    def __init__(self, probability: Tensor) -> None:
        super().__init__()
        self.register_buffer("probability", probability.double(), persistent=False)

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        x = batch.x
        if flow.training and batch.index is not None:
            p = self.probability[batch.index]
            level = (p * torch.rand(p.shape, dtype=p.dtype, device=p.device)).clamp_min(1e-12)
            drawn = torch.special.ndtri(torch.where(p > 0, level, 0.5)).to(x.dtype)
            x = torch.where(p > 0, drawn, x)
        distribution = flow(batch.condition) if batch.mask is None else flow(batch.condition, batch.mask)
        return -distribution.log_prob(x)


@torch.no_grad()
def scores_of(
    model: Transport, member: int, both: Sample, z: Tensor, weight: Tensor, mask: Tensor, rows: int
) -> tuple[Tensor, Redrawn]:
    """Fit the marginals of a member; the normal scores (N, D) of simulation (the first `rows`) and data, and the objective."""
    simulated, real = model.groups(torch.from_numpy(both.category))
    group = torch.cat([simulated[:rows], real[rows:]])
    marginals: Any = model.marginals[member]
    marginals.fit(z, group, weight, mask, model.bands)
    probability = torch.zeros_like(z)
    hit = mask & (torch.from_numpy(both.x) == model.features.mass)
    for number in torch.unique(group).tolist():
        inside = (group == number)[:, None] & mask
        share = (weight[:, None] * (hit & inside)).sum(0) / (weight[:, None] * inside).sum(0).clamp_min(1e-300)
        used = ((hit & inside & (weight > 0)[:, None]).sum(0) >= _FEW) & (share < 1)
        probability = torch.where(hit & inside & used, share, probability)
    return marginals(z, group, mask).float(), Redrawn(probability)
