"""Evidence: the learned harmonic mean, agreement of methods, Bayes factors."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Uniform

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior import Evidence, Posterior, Problem
from sciflow.posterior.evidence import HarmonicMean, agreement, bayes_factor
from sciflow.posterior.samplers import AnnealedImportance, Importance, TemperedSMC

from .moments import OPERATORS, gaussian_problem

others = [name if name == "mask" else pytest.param(name, marks=pytest.mark.slow) for name in OPERATORS]


def exact_draws(exact, chains, draws, seed=0):
    torch.manual_seed(seed)
    return Posterior(exact.posterior().sample((chains, draws)))


@pytest.mark.parametrize("operator", others)
def test_harmonic_mean_on_ten_gaussians(operator):
    """log Z within 3 standard errors of 16 blocks: 0.9 % false alarms."""
    exact = gaussian_problem(operator)
    found = HarmonicMean(epochs=25)(exact_draws(exact, 16, 250), exact.problem)
    assert abs(found.evidence.log_value - exact.log_evidence) < 3 * found.evidence.error
    assert found.evidence.error < 0.1 and found.certificate.verdict == "passed"


def test_harmonic_mean_of_draws_that_are_not_the_posterior_is_flagged():
    """A flow trained on too wide draws leaves the posterior: the tail of the ratios has no mean."""
    exact = gaussian_problem("identity", 4)
    root = torch.linalg.cholesky(exact.posterior.covariance())
    torch.manual_seed(0)
    x = exact.posterior.mean() + 2.5 * torch.randn(16, 100, 4, dtype=torch.float64) @ root.T
    assert HarmonicMean(epochs=15)(Posterior(x), exact.problem).certificate.verdict == "failed"


def test_harmonic_mean_takes_weights_bounds_and_chains():
    """A uniform prior: log Z = log of the mass of the likelihood inside, to first order of the tails."""
    prior = Independent(Uniform(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), 1)
    problem = Problem(prior, None, lambda x: -0.5 * ((x - 0.5) / 0.1).square().sum(-1))
    truth = math.log(2 * math.pi * 0.01)  # 5 sd inside on each side
    weighted = Importance(MultivariateNormal(torch.full((2,), 0.5).double(), 0.015 * torch.eye(2).double()), coverage=0)
    found = weighted(problem, 4000)
    by_mean = HarmonicMean(epochs=20)(found, problem)
    assert abs(by_mean.evidence.log_value - truth) < 3 * by_mean.evidence.error
    assert not [test for test in agreement([by_mean.evidence, found.evidence]) if not test.passed]


def test_harmonic_mean_refuses_what_it_cannot_use():
    exact = gaussian_problem("mask", 2)
    with pytest.raises(UserError, match="below 1"):
        HarmonicMean(1.0)
    with pytest.raises(UserError, match="at least 200"):
        HarmonicMean()(exact_draws(exact, 1, 100), exact.problem)
    with pytest.raises(UserError, match="do not vary"):
        HarmonicMean()(Posterior(torch.zeros(4, 200, 2, dtype=torch.float64)), exact.problem)
    dead = Posterior(torch.zeros(4, 200, 2, dtype=torch.float64), log_prob=torch.full((4, 200), -torch.inf))
    with pytest.raises(UserError, match="no draw has a finite density"):
        HarmonicMean()(dead, exact.problem)


def test_methods_agree_on_a_known_evidence():
    """Three methods and the truth: each within 3 standard errors, and so are all pairs."""
    exact = gaussian_problem("mask", 4)
    wide = MultivariateNormal(exact.posterior.mean(), 1.5 * exact.posterior.covariance())
    found = [Importance(wide, coverage=0)(exact.problem, 4000), AnnealedImportance()(exact.problem, 1000),
             TemperedSMC(runs=16)(exact.problem, 200)]  # fmt: skip
    evidences = [entry.evidence for entry in found]
    evidences.append(HarmonicMean(epochs=20)(found[2], exact.problem).evidence)
    for evidence in evidences:
        assert abs(evidence.log_value - exact.log_evidence) < 3 * evidence.error
    tests = agreement(evidences)
    assert len(tests) == 6 and Certificate(tests).verdict == "passed"


def test_disagreement_fails_and_ignorance_does_not_pass():
    a = Evidence.from_replicates([0.0, 0.1, -0.1, 0.05], "a")
    b = Evidence(a.log_value + 3.5 * math.hypot(a.error, 0.1), 0.1, "b")
    assert agreement([a, b])[0].value == pytest.approx(3.5) and Certificate(agreement([a, b])).verdict == "failed"
    near = Evidence(a.log_value + 2.5 * math.hypot(a.error, 0.1), 0.1, "b")
    assert Certificate(agreement([a, near])).verdict == "passed"
    unknown = Evidence(0.0, math.nan, "one run")
    assert agreement([a, unknown])[0].outcome == "not evaluated"
    assert len({test.name for test in agreement([a, a, a])}) == 3
    assert agreement([Evidence(-math.inf, 0.0, "a"), Evidence(0.0, 0.0, "b")])[0].outcome == "failed"
    with pytest.raises(UserError, match="two or more"):
        agreement([a])


def test_bayes_factor_of_two_gaussian_models():
    """A narrow and a wide prior for one datum: log Z in closed form."""
    first, second = gaussian_problem("mask", 2), gaussian_problem("identity", 2)
    wide = [MultivariateNormal(e.posterior.mean(), 1.5 * e.posterior.covariance()) for e in (first, second)]
    found = [Importance(q, coverage=0)(e.problem, 4000).evidence for q, e in zip(wide, (first, second), strict=True)]
    factor = bayes_factor(*found)
    truth = first.log_evidence - second.log_evidence
    assert abs(factor.log_value - truth) < 3 * factor.error and factor.test.passed
    assert factor.probability() == pytest.approx(1 / (1 + math.exp(-factor.log_value)))
    vague = bayes_factor(Evidence(0.0, 0.6, "a"), Evidence(0.0, 0.1, "b"))
    assert vague.test.outcome == "failed"
    assert bayes_factor(Evidence(0.0, math.nan, "a"), Evidence(0.0, 0.1, "b")).test.outcome == "not evaluated"
