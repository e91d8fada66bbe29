"""Gaussian problems in ten dimensions with known answers, and one joint test of mean and covariance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from scipy.stats import f as f_distribution
from torch import Tensor

from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian

__all__ = ["OPERATORS", "gaussian_problem", "moment_p_value", "moment_values"]

OPERATORS = ("identity", "mask", "dense")


def gaussian_problem(operator: str, features: int = 10) -> LinearGaussian:
    """A correlated normal prior seen through the identity, a mask of every second feature, or a dense 6 x 10 matrix."""
    generator = torch.Generator().manual_seed(7)
    root = torch.randn(features, features, generator=generator, dtype=torch.float64) / features**0.5
    covariance = 0.5 * torch.eye(features, dtype=torch.float64) + 0.5 * root @ root.T
    prior = GaussianMixtureFlow(torch.randn(1, features, generator=generator, dtype=torch.float64) * 0.5, covariance[None])
    matrix = {
        "identity": torch.eye(features, dtype=torch.float64),
        "mask": torch.eye(features, dtype=torch.float64)[::2],
        "dense": torch.randn(6, features, generator=generator, dtype=torch.float64) / features**0.5,
    }[operator]
    x = prior.mean() + torch.linalg.cholesky(covariance) @ torch.randn(features, generator=generator, dtype=torch.float64)
    noise = torch.randn(len(matrix), generator=generator, dtype=torch.float64)
    return LinearGaussian(prior, matrix, 0.5, matrix @ x + 0.5 * noise)


def moment_values(x: Tensor, mean: Tensor, covariance: Tensor, log_weight: Tensor | None = None) -> Tensor:
    r"""One row per replicate of D + D (D + 1) / 2 features whose expectation is 0 if the draws are N(mean, covariance).

    With z = L^-1 (x - mean): the averages of z_i, of z_i z_j, and of (z_i^2 - 1) / sqrt 2. With weights the average is
    sum_n w_n f(z_n) / N over the replicate, not divided by sum w: so its expectation is 0 exactly, at any N, for importance
    sampling, AIS and SMC. For SMC `log_weight` has to carry the replicate's own evidence: log Z^ - log N + log(N W_n).

    Arguments:
        x: (R, N, D), independent replicates.
        log_weight: (R, N), unnormalised, on a scale common to all replicates.
    """
    root = torch.linalg.cholesky(covariance)
    z = torch.linalg.solve_triangular(root, (x - mean).double().mT, upper=False).mT  # (R, N, D)
    i, j = torch.triu_indices(z.shape[-1], z.shape[-1])
    second = (z[..., i] * z[..., j] - (i == j).double()) / torch.where(i == j, 2.0**0.5, 1.0)
    values = torch.cat([z, second], -1)
    if log_weight is None:
        return values.mean(1)
    weight = (log_weight - log_weight.logsumexp((0, 1)) + torch.tensor(float(log_weight.numel())).log()).exp()
    return (weight.double()[..., None] * values).mean(1)


def moment_p_value(values: Tensor) -> float:
    """Hotelling's test that the rows (R, p) of `moment_values` have expectation 0; R must exceed p = 65 (D = 10) clearly.

    Exact for normal rows, whatever their covariance: replicates may be chains with any autocorrelation, as long as they are
    independent and each starts from the target or has forgotten its start.
    """
    rows, features = values.shape
    assert rows >= 1.5 * features, f"{rows} replicates for {features} features: Hotelling's test needs more"
    centred = values - values.mean(0)
    covariance = centred.T @ centred / (rows - 1)
    square = rows * float(values.mean(0) @ torch.linalg.solve(covariance, values.mean(0)))
    return float(f_distribution.sf(square * (rows - features) / (features * (rows - 1)), features, rows - features))


def stacked(results: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """x (R, N, D) and log-weights (R, N) of independent runs, each of which carries the evidence of its run."""
    x = torch.stack([found.rows for found in results])
    weight = torch.stack([found.weights.log() + found.evidence.log_value for found in results])
    return x, weight
