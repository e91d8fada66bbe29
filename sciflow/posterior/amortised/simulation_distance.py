"""How far an observation lies from the simulations, for a model that no longer has them."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.posterior.amortised.scaling import parts
from sciflow.recorded import Recorded

__all__ = ["SimulationDistance"]

_FLOOR = 1e-9  # of the largest variance; data come in single precision


class SimulationDistance(nn.Module, Recorded):
    r"""The Mahalanobis distance of standardised data to the centre of the simulations, in units of its 99.9 % quantile.

    1 is where one in a thousand simulations lies. Sets enter by mean, standard deviation and logarithm of the number of their
    members; missing entries as if they were at the mean. It is kept with the model and refuses only what is far outside; with
    simulations at hand `sciflow.posterior.diagnostics.check_observation` gives a p-value and refuses at a stated level.

    Arguments:
        features: of the data, see `summary`.
        pooled: data are sets.
        refusal: beyond this no draws are made unless forced.
    """

    centre: Tensor
    root: Tensor
    unit: Tensor

    def __init__(self, features: int, *, pooled: bool = False, refusal: float = 3.0) -> None:
        super().__init__()
        self.features, self.pooled, self.refusal = features, pooled, refusal
        self.register_buffer("centre", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("root", torch.eye(features, dtype=torch.float64))
        self.register_buffer("unit", torch.ones((), dtype=torch.float64))

    @torch.no_grad()
    def fit(self, y: Any) -> SimulationDistance:
        """From standardised data of all simulations."""
        rows = summary(y, self.pooled)
        self.centre.copy_(rows.mean(0))
        covariance = torch.cov(rows.T).reshape(self.features, self.features)
        values, vectors = torch.linalg.eigh(covariance)
        # directions in which simulations do not vary get a floor, well above rounding: an observation that leaves them is far
        floor = _FLOOR * values[-1].clamp_min(torch.finfo(torch.float64).tiny)
        self.root.copy_(vectors * values.maximum(floor).rsqrt())
        outermost = self.distance(rows).quantile(0.999) if len(rows) < 2**23 else self.distance(rows).max()
        self.unit.copy_(outermost.clamp_min(torch.finfo(torch.float64).tiny))
        return self

    def distance(self, rows: Tensor) -> Tensor:
        """Mahalanobis distances (B,)."""
        return ((rows - self.centre) @ self.root).square().sum(1).sqrt()

    def forward(self, y: Any) -> Tensor:
        """Of one row of standardised data: (), in units of the outermost permille."""
        return (self.distance(summary(y, self.pooled)) / self.unit).reshape(())


def summary(y: Any, pooled: bool) -> Tensor:
    """Standardised data as rows (B, features), float64."""
    values, mask = parts(y)
    values = values.double()
    if mask is None or not pooled:
        return values.flatten(1)
    wide = mask.unsqueeze(2)
    count = wide.sum(1)
    mean = torch.where(wide, values, 0).sum(1) / count.clamp_min(1)
    spread = (torch.where(wide, values - mean.unsqueeze(1), 0).square().sum(1) / count.clamp_min(1)).sqrt()
    return torch.cat((mean, spread, count.double().log1p()), 1)
