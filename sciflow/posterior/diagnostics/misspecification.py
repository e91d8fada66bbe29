"""Whether observed data look like simulated ones: a permutation test of the maximum mean discrepancy."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import finite, flattened
from sciflow.posterior.randomness import Randomness

__all__ = ["misspecification"]

_SOURCE = "Detecting Model Misspecification in Amortized Bayesian Inference, Schmitt et al. 2021, arXiv:2112.08866"


def misspecification(
    observed: Tensor, simulated: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, permutations: int = 999,
    level: float = 0.01, seed: int = 0,
) -> Test:  # fmt: skip
    r"""Squared MMD between observed (m, *data) and simulated (n, *data) data, in a feature space, as a p-value.

        MMD^2 = w' K w,  w = 1/m on observed and -1/n on simulated rows,  K = exp(-|f - f'|^2 / (2 h^2)),

    with h^2 the median of squared distances of scaled features. The null exchanges rows between both sets: exact if observed
    data come from the prior predictive distribution. One observation (m = 1) is allowed; several make it sharper.

    Arguments:
        features: (B, *data) -> (B, f), an embedding network for instance; the flattened data by default.
        permutations: p-values are not below 1 / (1 + permutations), nor below 1 / (1 + n) for one observation.

    Raises `UserError` if that bound is above the level, for shapes that do not fit and for values that are not finite.

    Source: A Kernel Two-Sample Test, Gretton et al. 2012; Detecting Model Misspecification in Amortized Bayesian Inference
    with Neural Networks, Schmitt et al. 2021, arXiv:2112.08866.

    >>> generator = torch.Generator().manual_seed(0)
    >>> simulated = torch.randn(200, 3, generator=generator)
    >>> misspecification(5 + torch.randn(4, 3, generator=generator), simulated).outcome
    'failed'
    """
    observed, simulated = torch.as_tensor(observed), torch.as_tensor(simulated)
    if observed.shape[1:] != simulated.shape[1:] or len(observed) < 1 or len(simulated) < 2:
        raise UserError(
            f"observed {tuple(observed.shape)} and simulated {tuple(simulated.shape)} data: give (m, *data) and (n, *data)"
        )
    integer("permutations", permutations, 1, 2**31)
    m, n = len(observed), len(simulated)
    smallest = max(1 / (1 + permutations), 1 / (1 + n) if m == 1 else 0.0)
    if smallest >= level:
        raise UserError(f"{n} simulations and {permutations} permutations cannot reach the level {level:g}: take more of both")
    both = torch.cat([observed, simulated])
    finite("observed data", observed)
    finite("simulated data", simulated)
    with torch.no_grad():
        f = flattened(both if features is None else torch.as_tensor(features(both)))
    if len(f) != len(both):
        raise UserError(f"features of {len(both)} rows have {len(f)} rows")
    spread = f.std(0)
    f = f / torch.where(spread > 0, spread, 1.0)
    squared = torch.cdist(f, f).square()
    median = squared[torch.triu_indices(len(f), len(f), 1).unbind()].median()
    kernel = torch.exp(-squared / (2 * median.clamp_min(torch.finfo(torch.float64).tiny)))
    statistic, exceeded = None, 0
    randomness = Randomness(seed, "misspecification", device=f.device)
    for start in range(0, permutations + 1, 256):
        rows = min(256, permutations + 1 - start)
        order = randomness.uniform(rows, len(f)).argsort(1)
        if statistic is None:
            order[0] = torch.arange(len(f), device=f.device)
        weights = f.new_full((rows, len(f)), -1 / n).scatter_(1, order[:, :m], 1 / m)
        values = ((weights @ kernel) * weights).sum(1)
        if statistic is None:
            statistic, values = values[0], values[1:]
        exceeded += int((values >= statistic - 1e-12).sum())
    assert statistic is not None
    p = (1 + exceeded) / (1 + permutations)
    text = (
        f"permutation p-value of the squared MMD {float(statistic):.3g} between {m} observed and {n} simulated rows: "
        "does the model make such data"
    )
    return Test("misspecification (MMD)", p, level, ">=", description=text, reference=_SOURCE)
