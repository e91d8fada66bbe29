"""How heavy are the tails of a sample?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["tail_index"]


def tail_index(x: Tensor, *, largest: float = 30.0) -> Tensor:
    r"""Tail index nu_j of each column of x (N,) or (N, D): P(|x_j - median| > t) ~ t^-nu_j; infinite for light tails.

    First, is there a heavy tail at all? The shape of a generalised Pareto law is fitted by probability-weighted moments
    to the excesses of the largest 5 % over their threshold; unless it is positive by three standard errors, the tail
    counts as light (an exponential tail is called heavy once in 700 times).

    Then, with the k + 1 largest absolute deviations a_0 >= ... >= a_k, Hill's estimator is 1/nu = mean_i log(a_i / a_k).
    The number k comes from the data: of a grid up to N / 10, the one whose exceedances are closest to a Pareto law in
    Kolmogorov's distance. Indices above `largest` count as light.

    Raises `UserError` for fewer than 200 rows or values that are not finite.

    Sources: A simple general approach to inference about the tail of a distribution, Hill 1975, Annals of Statistics
    3, 1163; Parameter and quantile estimation for the generalized Pareto distribution, Hosking and Wallis 1987,
    Technometrics 29, 339; Power-law distributions in empirical data, Clauset, Shalizi and Newman 2009,
    arXiv 0706.1062 (the threshold); Marginal Tail-Adaptive Normalizing Flows, Laszkiewicz et al. 2022, arXiv
    2206.10311 (the use).

    >>> uniform = (torch.arange(20000, dtype=torch.float64) + 0.5) / 20000
    >>> index = tail_index(torch.stack([uniform ** -0.5, uniform], 1))  # Pareto with index 2; bounded
    >>> [round(value) if value < math.inf else value for value in index.tolist()]
    [2, inf]
    """
    columns = x.detach().double().reshape(len(x), -1)
    if len(columns) < 200:
        raise UserError(f"a tail index needs at least 200 rows, got {len(columns)}")
    if not bool(columns.isfinite().all()):
        raise UserError("a tail index needs finite values; remove or mask the others first")
    return torch.tensor([_index(column, largest) for column in columns.T], dtype=torch.float64, device=x.device)


def _index(column: Tensor, largest: float) -> float:
    deviation = (column - column.median()).abs().sort(descending=True).values
    most = int((deviation[: len(deviation) // 10 + 1] > 0).sum()) - 1
    if most < 20 or _is_light(deviation):
        return math.inf
    logs = deviation[: most + 1].log()
    grid = sorted({round(20 * (most / 20) ** (step / 59)) for step in range(60)})
    best = min(grid, key=lambda k: _distance(logs, k))
    excess = logs[:best] - logs[best]
    mean = excess.mean().item()
    return 1 / mean if mean > 1 / largest else math.inf


def _is_light(deviation: Tensor) -> bool:
    """Whether the excesses of the largest 5 % have no significantly positive generalised Pareto shape."""
    k = len(deviation) // 20
    excess = deviation[:k] - deviation[k]
    share = torch.arange(k, dtype=excess.dtype, device=excess.device) / (k - 1)  # of excesses above this one
    first, second = excess.mean().item(), (share * excess).mean().item()
    if first <= 2 * second:  # all equal
        return True
    shape = 2 - first / (first - 2 * second)
    return shape <= 3 * math.sqrt(4 / (3 * k))


def _distance(logs: Tensor, k: int) -> float:
    """Kolmogorov's distance between the k exceedances and the Pareto law with Hill's index."""
    excess = logs[:k] - logs[k]
    mean = excess.mean()
    if mean <= 0:
        return math.inf
    survival = torch.exp(-excess / mean)  # increasing: the largest deviation first
    rank = torch.arange(k, dtype=logs.dtype, device=logs.device)
    return torch.maximum((survival - rank / k).abs(), (survival - (rank + 1) / k).abs()).max().item()
