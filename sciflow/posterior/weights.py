"""What importance weights say of themselves: k-hat, effective size with its interval, duplicates."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError

__all__ = ["PSIS", "EffectiveSize", "NoEffectiveDraws", "effective_size", "log_mean", "pareto_k", "smoothed", "weight_tests"]

_NOTHING = -math.log(np.finfo(float).tiny)
PSIS = "Pareto smoothed importance sampling, Vehtari et al. 2015, arXiv 1507.02646"


class NoEffectiveDraws(UserError):
    """All weights are 0. `result` holds what was computed: proposals with their log-densities."""

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


def log_mean(log_weight: Tensor) -> Tensor:
    """log of the mean of weights over the last dimension: (..., N) -> (...)."""
    return log_weight.logsumexp(-1) - math.log(log_weight.shape[-1])


class EffectiveSize(NamedTuple):
    """Kish's 1 / sum of squared normalised weights with a bootstrap interval, and its `optimism`.

    A heavy tail that was not met yet cannot be seen in the weights: estimates from few draws are too good. `optimism` is the
    effective share of the draws (size / N) averaged over quarters of them, over that of all: 1 once it has settled.
    """

    size: float
    low: float
    high: float
    optimism: float


def pareto_k(log_weight: Tensor) -> float:
    """k-hat: the shape of a generalised Pareto distribution fitted to the largest weights (N,).

    Below 0.5 the weights have a variance; to 0.7 estimates converge at a useful rate; above 1 their mean does not exist. Equal
    weights give -inf, too few positive ones for a tail inf, none and fewer than 25 draws NaN: unknown.

    Source: Pareto smoothed importance sampling, Vehtari et al. 2015, arXiv 1507.02646.

    >>> u = (torch.arange(1000) + 0.5) / 1000
    >>> abs(pareto_k(-0.5 * u.log()) - 0.5) < 0.1  # weights u^-1/2
    True
    """
    return _smooth(log_weight)[1]


def smoothed(log_weight: Tensor) -> Tensor:
    """Log-weights of the same shape whose largest ones are replaced by quantiles of the fitted tail: less variance, some bias.

    Normalised to sum 1 over all. Source as for `pareto_k`.
    """
    found, k = _smooth(log_weight)
    return log_weight.double().log_softmax(0) if math.isinf(k) or math.isnan(k) else found


def _smooth(log_weight: Tensor) -> tuple[Tensor, float]:
    from arviz_stats.base import array_stats  # slow to import

    values = log_weight.detach().double().flatten()
    present = values > -torch.inf
    if len(values) < 25 or int(present.sum()) == 0:
        return values, math.nan
    present &= values > values.max() - _NOTHING  # the others are 0 beside the largest: a tail of zeros has no shape
    if int(present.sum()) <= min(0.2 * len(values), 3 * len(values) ** 0.5):
        return values, math.inf  # all positive weights are in the tail: there is nothing it could be the tail of
    spread = values[present].max() - values[present].min()
    if float(spread) < 1e-10 and bool(present.all()):
        return values, -math.inf
    # weights of 0 are far below the tail, whatever their logarithm
    floor = values[present].min() - 100
    filled = torch.where(present, values, floor) - values[present].max()
    try:
        with np.errstate(all="ignore"):
            found, k = array_stats.psislw(-filled.cpu().numpy())  # its argument is the logarithm of 1 / weight
    except ValueError:  # the largest weights are all the same: they are bounded
        return values, -math.inf
    smooth = torch.from_numpy(np.asarray(found)).to(values.device)
    return torch.where(present, smooth, -torch.inf).reshape(log_weight.shape), float(k)


def effective_size(log_weight: Tensor, *, level: float = 0.9, resamples: int = 200, seed: int = 0) -> EffectiveSize:
    """Of log-weights (N,). The interval is the percentile one of a Poisson bootstrap.

    It holds what the weights at hand say; of heavy tails that were not met, `optimism` tells a part and k-hat more.
    """
    values = log_weight.detach().double().flatten().cpu().numpy()
    top = values.max(initial=-np.inf)
    if not np.isfinite(top):
        return EffectiveSize(0.0, 0.0, 0.0, math.nan)
    weight = np.exp(values - top)
    square = weight * weight
    size = float(weight.sum() ** 2 / square.sum())
    rng = np.random.default_rng(seed)
    several = max(1, min(resamples, 10**8 // len(weight)))
    found = np.empty(several)
    for k in range(several):
        count = rng.poisson(1.0, len(weight))
        found[k] = (count @ weight) ** 2 / max(float(count @ square), np.finfo(float).tiny)
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    quarter = len(weight) // 4
    optimism = math.nan
    if quarter >= 10:
        parts = [weight[k * quarter : (k + 1) * quarter] for k in range(4)]
        parts = [p / p.max() if p.any() else p for p in parts]  # squares of tiny weights would be 0
        shares = [p.sum() ** 2 / np.square(p).sum() / quarter if p.any() else 0.0 for p in parts]
        optimism = float(np.mean(shares) / (size / len(weight)))
    return EffectiveSize(size, float(low), float(high), optimism)


def weight_tests(log_weight: Tensor, *, least: float = 100.0, k: float | None = None) -> tuple[list[Test], dict[str, float]]:
    """Tests and figures of unnormalised log-weights (N,) of independent draws.

    k-hat warns above 0.7 and fails above 1.0; the effective size warns below `least`, and where it has not settled.
    """
    size = effective_size(log_weight)
    k = pareto_k(log_weight) if k is None else k
    equal = k == -math.inf
    shown = None if math.isnan(k) else (-1.0 if equal else k)
    half = 0.5 * (size.high - size.low)
    tests = [
        Test("k-hat", shown, 0.7, "<=", severity="warn", reference=PSIS, description="shape of the tail of the weights"),
        Test("k-hat, limit", shown, 1.0, "<=", reference=PSIS, description="above 1 the weights have no mean"),
        Test("effective draws", size.size, least, ">=", error=half, severity="warn",
             description=f"1 / sum of squared weights; 90 % bootstrap interval {size.low:.4g} to {size.high:.4g}"),
        Test("effective share, quarters over all", None if math.isnan(size.optimism) else size.optimism, 1.5, "<=",
             severity="warn", description="above 1 the effective size still falls with the draws: it is too optimistic"),
    ]  # fmt: skip
    figures = {"k_hat": k, "effective": size.size, "effective_low": size.low, "effective_high": size.high,
               "effective_optimism": size.optimism}  # fmt: skip
    return tests, figures
