"""Simulation-based calibration: of parameters, of any quantity of parameters and data, of the log-likelihood."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor

from sciflow.posterior.diagnostics.inputs import Quantity, evaluate, parameter_names, simulations, uniforms
from sciflow.posterior.diagnostics.ranks import Ranks, fractional_rank

__all__ = ["sbc", "sbc_quantities"]

_SBC = "Validating Bayesian Inference Algorithms with SBC, Talts et al. 2018, arXiv:1804.06788"
_QUANTITIES = "Simulation-Based Calibration Checking for Bayesian Computation, Modrak et al. 2022, arXiv:2211.02383"


def sbc(theta: Tensor, draws: Tensor, *, names: Sequence[str] | None = None, seed: int = 0) -> list[Ranks]:
    """Ranks of each parameter among its draws: uniform if q(theta | y) = p(theta | y).

    Blind for whatever is right in every margin on average over y: q = prior, wrong correlations. Use the battery.

    Arguments:
        theta: parameters drawn from the prior (n, *event).
        draws: of q(theta | y_i) (n, L, *event), independent (thin chains).
        seed: of the uniforms that break ties.

    Source: Validating Bayesian Inference Algorithms with Simulation-Based Calibration, Talts et al. 2018, arXiv:1804.06788.

    >>> import torch
    >>> theta, draws = torch.randn(200, 1), torch.randn(200, 50, 1)
    >>> len(sbc(theta, draws, names=["mass"]))
    1
    """
    found = simulations(theta, draws)
    flat, all_draws = found.flat
    text = "is the rank of the true parameter among its draws uniform"
    return [
        Ranks(name, fractional_rank(flat[:, k], all_draws[:, :, k], uniforms(seed, name, len(flat), flat)), text, _SBC)
        for k, name in enumerate(parameter_names(names, flat.shape[1]))
    ]


def sbc_quantities(
    theta: Tensor, draws: Tensor, y: Tensor, quantities: Mapping[str, Quantity], *, seed: int = 0
) -> list[Ranks]:
    """Ranks of quantities f(theta, y): functions of rows (B, *event) and (B, *data) that return (B,).

    The log-likelihood log p(y | theta) is the one to give if it can be computed: it sees q = prior and wrong correlations.
    Ties (likelihoods that are constant, quantities that count) are broken at random.

    Source: Simulation-Based Calibration Checking for Bayesian Computation: The Choice of Test Quantities Shapes Sensitivity,
    Modrak et al. 2022, arXiv:2211.02383.
    """
    found = simulations(theta, draws, y)
    ranks = []
    for name, quantity in quantities.items():
        truth, values = evaluate(quantity, found, name)
        rank = fractional_rank(truth, values, uniforms(seed, name, len(truth), truth))
        ranks.append(Ranks(name, rank, f"is the rank of {name} uniform", _QUANTITIES, "quantity"))
    return ranks
