"""Ranks of the truth among draws, and whether they are uniform."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats
from torch import Tensor

from sciflow.certificate import Test

__all__ = ["Ranks", "fractional_rank", "holm", "kolmogorov_smirnov"]


def fractional_rank(truth: Tensor, draws: Tensor, uniform: Tensor) -> Tensor:
    r"""(#{draws < truth} + u (#{draws = truth} + 1)) / (L + 1) with u uniform in (0, 1).

    If the truth and the L draws are exchangeable this is exactly uniform on (0, 1), whatever L and however many ties there
    are: p-values need no correction for the discreteness of ranks.

    Arguments:
        truth: (..., n).
        draws: (..., n, L).
        uniform: (..., n).
    """
    below = (draws < truth.unsqueeze(-1)).sum(-1)
    ties = (draws == truth.unsqueeze(-1)).sum(-1)
    return (below + uniform * (ties + 1)) / (draws.shape[-1] + 1)


def kolmogorov_smirnov(values: Tensor) -> np.ndarray:
    """Exact two-sided p-values (...) of the Kolmogorov-Smirnov test of uniformity for values (..., n)."""
    ordered, n = values.sort(-1).values.cpu().numpy(), values.shape[-1]
    steps = np.arange(n) / n
    distance = np.maximum(ordered - steps, steps + 1 / n - ordered).max(-1)
    return np.asarray(stats.kstwo.sf(distance, n))


def holm(p_values: np.ndarray) -> np.ndarray:
    """p-values (K, ...) adjusted by Holm's step-down rule: rejecting below alpha errs with probability <= alpha in all.

    Source: A simple sequentially rejective multiple test procedure, Holm, 1979.

    >>> holm(np.array([0.01, 0.5, 0.02]))
    array([0.03, 0.5 , 0.04])
    """
    p, count = np.asarray(p_values, dtype=float), len(p_values)
    order = np.argsort(p, axis=0)
    factors = np.arange(count, 0, -1).reshape(-1, *[1] * (p.ndim - 1))
    stepped = np.minimum(np.maximum.accumulate(np.take_along_axis(p, order, 0) * factors, axis=0), 1.0)
    adjusted = np.empty_like(p)
    np.put_along_axis(adjusted, order, stepped, axis=0)
    return adjusted


@dataclass(frozen=True, repr=False)
class Ranks:
    """Fractional ranks (n,) of one quantity; (..., n) for several replicates at once.

    >>> import torch
    >>> Ranks("x", (torch.arange(100) + 0.5) / 100)
    Ranks of x: 100 simulations, p = 1
    """

    name: str
    values: Tensor
    description: str = ""
    reference: str = ""
    kind: str = "parameter"

    @property
    def p_values(self) -> np.ndarray:
        """p-values (...), () for one replicate."""
        return kolmogorov_smirnov(self.values)

    def test(self, level: float = 0.01, p_value: float | None = None, *, adjusted: str = "") -> Test:
        """The test at a level. `p_value` replaces the figure's own, when several were adjusted together."""
        value = float(self.p_values) if p_value is None else float(p_value)
        text = f"{adjusted}p-value: {self.description or 'are ranks of the truth uniform'}"
        return Test(f"calibration of {self.name}", value, level, ">=", description=text, reference=self.reference)

    def __repr__(self) -> str:
        n, p = self.values.shape[-1], self.p_values
        shown = f"{float(p):.3g}" if p.ndim == 0 else f"{np.array2string(p, precision=3, threshold=6)}"
        return f"Ranks of {self.name}: {n} simulations, p = {shown}"
