"""Weighted moments and quantiles of one column."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["location_and_scale", "quantile"]


def quantile(x: Tensor, weight: Tensor, levels: tuple[float, ...]) -> Tensor:
    """The weighted quantiles of x (N,) at the given levels, by linear interpolation of the mid-rank distribution.

    >>> quantile(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([1.0, 1.0, 1.0]), (0.5,))
    tensor([2.], dtype=torch.float64)
    """
    order = torch.argsort(x)
    values, mass = x[order].double(), weight[order].double()
    middle = (mass.cumsum(0) - mass / 2) / mass.sum()
    wanted = torch.tensor(levels, dtype=torch.float64, device=x.device)
    above = torch.searchsorted(middle, wanted).clamp(1, max(len(values) - 1, 1))
    if len(values) == 1:
        return values.expand(len(levels))
    left, right = middle[above - 1], middle[above]
    part = ((wanted - left) / (right - left).clamp_min(torch.finfo(torch.float64).tiny)).clamp(0, 1)
    return values[above - 1] + part * (values[above] - values[above - 1])


def location_and_scale(x: Tensor, weight: Tensor, *, robust: bool) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation, or, robustly, the median and half the width of the central 68.27 %."""
    if robust:
        low, middle, high = quantile(x, weight, (0.158655, 0.5, 0.841345))
        return middle, (high - low) / 2
    mean = (weight * x).sum() / weight.sum()
    return mean, ((weight * (x - mean) ** 2).sum() / weight.sum()).sqrt()
