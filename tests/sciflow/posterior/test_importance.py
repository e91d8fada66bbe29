"""Importance sampling: known answers, what is flagged, and what is kept."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Normal, Uniform

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Energy, Problem, Randomness
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.samplers import Defensive, Importance, Proposal
from sciflow.posterior.weights import NoEffectiveDraws, effective_size, pareto_k, smoothed, weight_tests

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def inflated(problem, factor=1.3):
    return MultivariateNormal(problem.posterior.mean(), factor * problem.posterior.covariance())


@pytest.mark.parametrize("operator", OPERATORS)
def test_gaussian_linear(operator):
    """Mean and covariance in one test at level 1 %, evidence within 3 standard errors (0.5 %)."""
    exact = gaussian_problem(operator)
    found = Importance(inflated(exact), replicates=128, coverage=5)(exact.problem, 128 * 80, seed=1)
    x, weight = found.x.reshape(128, 80, 10), found.log_weight.reshape(128, 80)
    assert moment_p_value(moment_values(x, exact.posterior.mean(), exact.posterior.covariance(), weight)) > 0.01
    assert abs(found.evidence.log_value - exact.log_evidence) < 3 * found.evidence.error
    assert found.certificate.verdict == "passed"


def test_pareto_k_of_known_tails():
    """Weights u^-k have the tail index k. At 20,000 draws it scatters by 0.06, 0.08, 0.10 (40 seeds); the limit is 0.2."""
    u = torch.from_numpy(np.random.default_rng(0).uniform(size=20_000))
    for k in (0.3, 0.7, 1.2):
        assert abs(pareto_k(-k * u.log()) - k) < 0.2
    assert pareto_k(torch.zeros(1000)) == -math.inf and math.isnan(pareto_k(torch.zeros(10)))
    assert math.isnan(pareto_k(torch.full((1000,), -math.inf)))
    few = torch.full((1000,), -math.inf)
    few[:3] = 0
    assert pareto_k(few) > 1


def test_weights_that_underflow_have_no_tail():
    """One weight beside which the others are 0, as where a prior does not cover precise data: k-hat must not be small."""
    log_weight = -1e6 * torch.linspace(0, 1, 100, dtype=torch.float64)
    assert pareto_k(log_weight) == math.inf
    tests, _ = weight_tests(log_weight)
    assert next(test for test in tests if test.name == "k-hat, limit").outcome == "failed"


def test_smoothing_keeps_order_and_lowers_the_variance():
    log_w = -0.6 * torch.from_numpy(np.random.default_rng(1).uniform(size=4000)).log()
    smooth = smoothed(log_w)
    assert abs(float(smooth.exp().sum()) - 1) < 1e-9
    assert effective_size(smooth).size > effective_size(log_w).size
    assert bool((smooth.argsort() == log_w.argsort()).all())


def test_effective_size_interval_and_optimism():
    """Weights exp(0.5 z): N exp(-1/4) in the limit. Seeded; the interval is at level 90 %, checked with a margin of 5 %."""
    z = torch.from_numpy(np.random.default_rng(2).normal(size=20_000))
    size = effective_size(0.5 * z)
    assert size.low * 0.95 < 20_000 * math.exp(-0.25) < size.high * 1.05 and size.low < size.size < size.high
    assert abs(size.optimism - 1) < 0.1
    assert effective_size(3.0 * z).optimism > 1.5  # N exp(-9) = 2.5: never met by so few draws


def test_pilot_optimism_is_flagged():
    """Prior proposals in ten dimensions: 1000 draws believe in far more effective ones than there are."""
    exact = gaussian_problem("identity")
    found = Importance()(exact.problem, 1000, seed=0)
    assert found.certificate.verdict == "failed" and found.certificate["k-hat, limit"].outcome == "failed"


def test_smooth_option_keeps_raw_weights():
    exact = gaussian_problem("mask")
    plain = Importance(inflated(exact, 0.9), coverage=0)(exact.problem, 2000)
    smooth = Importance(inflated(exact, 0.9), smooth=True, coverage=0)(exact.problem, 2000)
    assert torch.equal(smooth.traces["log_weight_raw"], plain.log_weight[0]) and smooth.evidence == plain.evidence
    assert smooth.certificate["k-hat"].value == plain.certificate["k-hat"].value
    assert smooth.certificate["weights are smoothed"].value == 1
    assert not torch.allclose(smooth.weights, plain.weights)


def test_resampled_draws_have_equal_weights_and_counted_duplicates():
    exact = gaussian_problem("dense")
    found = Importance(inflated(exact), multiple=20)(exact.problem, 1000, seed=3)
    assert found.log_weight is None and found.x.shape == (1, 1000, 10)
    distinct = len(torch.unique(found.rows, dim=0))
    assert found.statistics["distinct"] == distinct > 950
    assert found.certificate["share of duplicates"].value == pytest.approx(1 - distinct / 1000)
    # 10 means of 1000 draws within 4 standard errors: 6e-4 false alarms
    z = (found.mean() - exact.posterior.mean()) / exact.posterior.covariance().diag().sqrt() * 1000**0.5
    assert float(z.abs().max()) < 4
    once = Importance(inflated(exact, 4.0), multiple=1, coverage=0)(exact.problem, 1000)
    crowded = Importance(inflated(exact, 4.0), multiple=2, coverage=0)(exact.problem, 1000)
    assert once.log_weight is not None and crowded.certificate["share of duplicates"].outcome == "warned"


def test_defensive_mixture_has_the_mixture_density_and_bounds_the_weights():
    exact = gaussian_problem("identity", 3)
    narrow = MultivariateNormal(exact.posterior.mean() + 0.5, 0.1 * exact.posterior.covariance())
    alone = Importance(narrow, coverage=0)(exact.problem, 20_000, seed=1)
    mixture = Defensive([narrow, exact.problem.prior], [0.8, 0.2])
    found = Importance(mixture, coverage=0)(exact.problem, 20_000, seed=1)
    x = found.rows[:50]
    by_hand = torch.logaddexp(narrow.log_prob(x) + math.log(0.8), exact.prior().log_prob(x) + math.log(0.2))
    assert torch.allclose(found.log_proposal[0, :50], by_hand)
    most = exact.problem.likelihood.log_prob(exact.problem.observation, exact.problem.observation[None])
    assert float(found.log_weight.max()) <= float(most) - math.log(0.2) + 1e-9
    assert alone.statistics["k_hat"] > 0.7 > found.statistics["k_hat"]
    assert abs(found.evidence.log_value - exact.log_evidence) < 3 * found.evidence.error
    share = float((mixture.draw(4000, Randomness(0, "share"))[0] - narrow.mean).abs().amax(1).lt(1.5).double().mean())
    assert 0.75 < share < 1


def test_no_effective_draws_is_an_error_that_keeps_the_result():
    problem = Problem(Independent(Uniform(torch.zeros(2), torch.ones(2)), 1), None, lambda x: torch.full((len(x),), -math.inf))
    with pytest.raises(NoEffectiveDraws, match="no effective draws: all 100 weights are 0") as caught:
        Importance()(problem, 100)
    kept = caught.value.result
    assert kept.x.shape == (1, 100, 2) and kept.certificate.verdict == "failed" and kept.calls.likelihood == 100


def test_values_that_are_no_numbers_are_excluded_and_counted():
    prior = Independent(Normal(torch.zeros(1), torch.ones(1)), 1)
    problem = Problem(prior, None, lambda x: torch.where(x[:, 0] > 1.0, torch.nan, -0.5 * x[:, 0] ** 2))
    found = Importance(coverage=0)(problem, 4000)
    assert found.certificate["values that are no numbers"].outcome == "warned"
    assert float(found.rows[found.weights > 0].max()) <= 1.0
    assert abs(found.certificate["values that are no numbers"].value - 0.159) < 0.03


def test_proposals_that_do_not_cover_the_target_are_flagged():
    """A box that ends inside the posterior has perfect weights: only moves, or prior draws, see what is outside."""
    prior = Independent(Normal(double([0.0]), double([3.0])), 1)
    problem = Problem(prior, double([0.0]), Gaussian(1.0))
    box = Independent(Uniform(double([-0.5]), double([3.0]), validate_args=False), 1)
    found = Importance(box)(problem, 4000)
    assert found.statistics["k_hat"] < 0.7 and found.certificate.verdict == "failed"
    assert found.certificate["draws that leave the proposal"].outcome == "failed"
    assert found.certificate["prior mass above all weights"].outcome == "failed"
    assert Importance(Independent(Normal(double([0.0]), double([1.2])), 1))(problem, 4000).certificate.verdict == "passed"
    # a mode that is far from all proposals: prior draws know it
    wells = ManyWell(2)
    one = Normal(double([1.7, 0.0]), double([0.4, 1.2]))
    twin = Problem(Independent(Normal(double([0.0, 0.0]), double([2.0, 2.0])), 1), None, lambda x: wells.log_prob(x))
    missed = Importance(Independent(one, 1))(twin, 4000)
    assert missed.certificate["prior mass above all weights"].outcome == "failed"


def test_chunks_and_flows_change_nothing():
    exact = gaussian_problem("mask")
    whole, parts = (Importance(coverage=0, chunk=chunk)(exact.problem, 1000) for chunk in (10**6, 300))
    assert torch.equal(whole.x, parts.x) and torch.allclose(whole.log_weight, parts.log_weight)
    flow = NeuralSplineFlow(2, transforms=2, hidden=(8,))
    target = Energy(lambda x: 0.5 * x.square().sum(-1), 2)
    found = Importance(flow, coverage=0)(target, 2000)
    assert abs(found.evidence.log_value - math.log(2 * math.pi)) < 4 * found.evidence.error + 1e-3


def test_bad_arguments():
    with pytest.raises(UserError, match="has no prior to propose from"):
        Importance()(ManyWell(2), 100)
    with pytest.raises(UserError, match="event shape"):
        Importance(Independent(Normal(torch.zeros(3), torch.ones(3)), 1))(ManyWell(2), 100)
    with pytest.raises(UserError, match="replicates"):
        Importance(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))(ManyWell(2), 10)
    with pytest.raises(UserError, match="smooth=True"):
        Importance(smooth=True, multiple=2)
    with pytest.raises(UserError, match="one weight > 0"):
        Defensive([Proposal(Independent(Normal(torch.zeros(2), torch.ones(2)), 1))], [0.5, 0.5])
