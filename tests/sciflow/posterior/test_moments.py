"""The joint test of moments holds its level and sees what it should."""

from __future__ import annotations

import pytest
import torch

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


def draws(problem, replicates, count, seed):
    generator = torch.Generator().manual_seed(seed)
    mean, covariance = problem.posterior.mean(), problem.posterior.covariance()
    z = torch.randn(replicates, count, 10, generator=generator, dtype=torch.float64)
    return mean + z @ torch.linalg.cholesky(covariance).T, mean, covariance


def test_level_of_the_moment_test():
    """At level 10 %, 200 repeats: the count is binomial with 20 +- 4.2; outside of 6 ... 34 with probability 2e-3."""
    problem = gaussian_problem("dense")
    rejected = sum(moment_p_value(moment_values(*draws(problem, 128, 20, seed))) < 0.1 for seed in range(200))
    assert 6 <= rejected <= 34


@pytest.mark.parametrize("operator", OPERATORS)
def test_moment_test_sees_shift_width_and_correlation(operator):
    """Shift of 0.1 sd in one direction, width 0.95, prior instead of posterior: all rejected at 1 %."""
    problem = gaussian_problem(operator)
    x, mean, covariance = draws(problem, 128, 100, 1)
    root = torch.linalg.cholesky(covariance)
    assert moment_p_value(moment_values(x, mean, covariance)) > 0.01
    assert moment_p_value(moment_values(x + 0.1 * root[:, 0], mean, covariance)) < 0.01
    assert moment_p_value(moment_values(mean + 0.95 * (x - mean), mean, covariance)) < 0.01
    assert moment_p_value(moment_values(x, problem.prior.mean(), problem.prior.covariance())) < 1e-6


def test_weighted_moment_test():
    """Importance sampling from a wider normal: exact expectation 0 with unnormalised weights, false alarm 1 %."""
    problem = gaussian_problem("identity")
    x, mean, covariance = draws(problem, 128, 200, 2)
    wide = mean + 1.2 * (x - mean)
    z = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), (wide - mean).mT, upper=False).mT
    log_weight = -0.5 * z.square().sum(-1) * (1 - 1 / 1.44)
    assert moment_p_value(moment_values(wide, mean, covariance, log_weight)) > 0.01
    assert moment_p_value(moment_values(wide, mean, covariance)) < 0.01
