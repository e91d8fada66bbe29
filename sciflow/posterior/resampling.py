"""Resampling: from weighted to equally weighted rows."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["systematic"]


def systematic(weights: Tensor, count: int, uniform: Tensor | float) -> Tensor:
    """Indices (count,) of rows by systematic resampling: row i is taken floor or ceil of count * weights[i] times.

    Arguments:
        weights: normalised (N,).
        uniform: one number in (0, 1).

    Source: Comparison of Resampling Schemes for Particle Filtering, Douc, Cappe and Moulines 2005, cs/0507025.

    >>> systematic(torch.tensor([0.5, 0.0, 0.5]), 4, 0.5)
    tensor([0, 0, 2, 2])
    """
    edges = weights.double().cumsum(0)
    places = (torch.arange(count, dtype=torch.float64, device=weights.device) + uniform) / count
    return torch.searchsorted(edges / edges[-1], places, right=True).clamp_max(len(weights) - 1)
