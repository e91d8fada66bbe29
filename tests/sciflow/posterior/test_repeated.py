"""Weighted samplers over repeated simulated observations: are the posteriors those of the parameters that made the data?"""

from __future__ import annotations

import pytest
import torch
from scipy.stats import binom, chi2

from sciflow.posterior import Randomness
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.samplers import AnnealedImportance, DiffusionSampler, TemperedSMC

PRIOR = GaussianMixtureFlow([[0.5, -0.5]], [[[1.0, 0.4], [0.4, 0.7]]])
MATRIX = torch.tensor([[1.0, 0.3], [-0.2, 0.8]], dtype=torch.float64)
SIGMA = 0.6
BETAS = [0.03, 0.15, 0.45, 1.0]


def simulated(count):
    """Parameters drawn from the prior and what was observed of each."""
    source = Randomness(8, "repeated", dtype=torch.float64)
    root = torch.linalg.cholesky(PRIOR.covariance())
    theta = PRIOR.mean() + source.normal(count, (2,)) @ root.T
    return theta, theta @ MATRIX.T + SIGMA * source.normal(count, (2,))


def places(sampler, draws, count):
    """Posterior probabilities, between 0 and 1, of what is below the truth: of both parameters and of the log-likelihood."""
    found = []
    for number, (truth, y) in enumerate(zip(*simulated(count), strict=True)):
        problem = LinearGaussian(PRIOR, MATRIX, SIGMA, y).problem
        result = sampler(problem, draws, seed=number, progress=False)
        weight, x = result.weights, result.rows
        below = torch.cat([x < truth, (problem.log_likelihood(x) < problem.log_likelihood(truth[None]))[:, None]], 1)
        found.append((weight[:, None] * below).sum(0))
    return torch.stack(found)


def p_value(values, bins=5):
    """One p-value (Bonferroni) for three chi-squares of uniformity in `bins` bins and for the coverage of both parameters'
    central 80 % intervals."""
    count = len(values)
    levels = []
    for column in values.T:
        seen = torch.histc(column.clamp(0, 1), bins, 0, 1)
        levels.append(float(chi2.sf(float((seen - count / bins).square().sum() / (count / bins)), bins - 1)))
    for column in values[:, :2].T:
        inside = int(((column > 0.1) & (column < 0.9)).sum())
        levels.append(2 * min(binom.cdf(inside, count, 0.8), binom.sf(inside - 1, count, 0.8)))
    return min(1.0, len(levels) * min(levels))


SAMPLERS = {
    "tempered": (TemperedSMC(runs=2, betas=BETAS, pilot=100, final=1, further=1), 60),
    "annealed": (AnnealedImportance(betas=BETAS, pilot=100, replicates=2, further=1), 120),
    "diffusion": (DiffusionSampler(steps=6, iterations=25, batch=64, hidden=(16,), replicates=2, further=1), 200),
}


@pytest.mark.parametrize("name", ["tempered", pytest.param("annealed", marks=pytest.mark.slow)])
def test_intervals_cover_the_truth(name):
    """Twenty-five simulated observations of a Gaussian-linear problem; one joint test, false alarms 0.5 % each."""
    assert p_value(places(*SAMPLERS[name], 25)) > 0.005


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLERS)
def test_intervals_cover_the_truth_a_hundred_times(name):
    """False alarms 0.5 % each."""
    assert p_value(places(*SAMPLERS[name], 100)) > 0.005


def test_wrong_posteriors_are_seen():
    """500 sets of 200 uniforms are below 5 % in at most 5 % of cases (Bonferroni; more than 41 once in 1000), and a width of
    0.7 or 1.5 is seen in 200 observations of exact posteriors."""
    source = Randomness(3, "uniforms")
    low = sum(p_value(source.uniform(200, 3)) < 0.05 for _ in range(500))
    assert 3 < low < 42
    theta, y = simulated(200)
    for width in (0.7, 1.5):
        values = []
        for truth, seen in zip(theta, y, strict=True):
            posterior = LinearGaussian(PRIOR, MATRIX, SIGMA, seen).posterior
            deviation = posterior.covariance().diagonal().sqrt()
            values.append(torch.distributions.Normal(posterior.mean(), width * deviation).cdf(truth))
        assert p_value(torch.stack([*torch.stack(values).T, source.uniform(200, 1)[:, 0]], 1)) < 0.005
