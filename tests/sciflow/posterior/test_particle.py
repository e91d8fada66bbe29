"""Estimators made of particles and of search: right where they say so, and never called a posterior."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Energy, Estimate, Problem
from sciflow.posterior.estimators.flow_chef import FlowChef
from sciflow.posterior.estimators.mmd_flow import MMDFlow
from sciflow.posterior.estimators.pnp_flow import PnPFlow
from sciflow.posterior.estimators.search import RolloverSearch
from sciflow.posterior.estimators.sliced_wasserstein import SlicedWasserstein
from sciflow.posterior.likelihoods import Gaussian, Masked
from sciflow.posterior.operators import Mask
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian

from .moments import gaussian_problem


def small():
    return LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.5]], 0.7, [0.8])


@pytest.mark.parametrize("method", [MMDFlow(500, steps=80), SlicedWasserstein(1000, steps=150)], ids=["mmd", "sliced"])
def test_conditional_particles_in_two_dimensions(method):
    """The case where they are right: mean within 0.35 sd, standard deviations within 25 %; simulations are counted."""
    exact = small()
    found = method(exact.problem, 500)
    sd = exact.posterior.covariance().diagonal().sqrt()
    assert bool(((found.mean() - exact.posterior.mean()).abs() / sd < 0.35).all())
    assert bool(((found.std() / sd).log().abs() < 0.25).all())
    correlation = torch.corrcoef(found.rows.T)[0, 1]
    wanted = exact.posterior.covariance()[0, 1] / sd.prod()
    assert abs(float(correlation - wanted)) < 0.2
    assert isinstance(found, Estimate) and found.certificate.verdict == "failed"
    assert found.calls.simulator == method.simulations


@pytest.mark.parametrize("method", [MMDFlow(100, steps=20), SlicedWasserstein(100, steps=20)], ids=["mmd", "sliced"])
def test_masked_data_are_left_out(method):
    """Draws are those for data of which the masked ones were never taken, bit for bit: noise is addressed by its place."""
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    seen = torch.tensor([True, False])
    found = method(Problem(prior, torch.tensor([1.0, torch.nan]), Masked(Gaussian(0.5), seen)), 50)
    wanted = method(Problem(prior, torch.tensor([1.0]), Gaussian(0.5), Mask(seen)), 50)
    assert torch.equal(found.x, wanted.x) and bool(found.x.isfinite().all())


def test_particles_need_simulations():
    with pytest.raises(UserError, match="simulates pairs"):
        MMDFlow()(Energy(lambda x: x.square().sum(-1), 2), 10)


@pytest.mark.parametrize(
    ("build", "message"),
    [(lambda: FlowChef(0), "steps is 0"), (lambda: PnPFlow(0), "steps is 0"), (lambda: PnPFlow(averages=0), "averages is 0")],
)
def test_estimators_refuse_to_do_nothing(build, message):
    with pytest.raises(UserError, match=message):
        build()


def test_search_with_a_constant_likelihood_draws_the_prior():
    """Where it is right: moments of the prior, 6 standard errors."""
    prior = GaussianMixtureFlow([[-2.0, 0.0], [2.0, 0.0]], 0.25, [0.3, 0.7])
    problem = Problem(prior, likelihood=lambda x: x.new_zeros(len(x)))
    found = RolloverSearch(60, quota=1)(problem, 2000)
    right = float((found.rows[:, 0] > 0).double().mean())
    assert abs(right - 0.7) < 6 * (0.21 / 2000) ** 0.5
    assert abs(float(found.rows[:, 1].std()) / 0.5 - 1) < 0.1


def test_more_budget_more_likelihood_and_less_spread():
    exact = gaussian_problem("mask")
    rewards, calls, spreads = [], [], []
    for quota in (1, 4, 16):
        found = RolloverSearch(20, quota=quota)(exact.problem, 300)
        rewards.append(float(found.log_likelihood.mean()))
        calls.append(found.calls.velocity)
        spreads.append(float(found.std()[::2].mean()))
    assert rewards == sorted(rewards) and rewards[-1] > rewards[0] + 5
    assert calls == sorted(calls) and calls[0] == 300 * 20
    assert calls[-1] <= 300 * 20 * 16
    assert spreads[-1] < spreads[0]
    assert found.certificate.verdict == "failed"
