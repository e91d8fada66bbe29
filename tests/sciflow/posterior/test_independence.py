"""Chains with global proposals: exact whatever the proposal is, and honest where it is bad."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Energy, Problem
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.samplers.independence import Independence, jump_tests
from sciflow.posterior.samplers.local import Local
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


@pytest.mark.parametrize("local", [None, Local("walk"), Local("hamiltonian")], ids=["alone", "walk", "hamiltonian"])
@pytest.mark.parametrize("operator", OPERATORS)
def test_moments(operator, local):
    """A proposal with a wrong mean and 1.2 times the width; joint test of moments, false alarm 1 % per case."""
    exact = gaussian_problem(operator)
    covariance = exact.posterior.covariance()
    proposal = GaussianMixtureFlow(exact.posterior.mean()[None] + 0.1, 1.44 * covariance[None])
    sampler = Independence(proposal, local=local, moves=2, chains=128, warmup=100 if local is None else 40)
    found = sampler(exact.problem, 80 if local is None else 40)
    assert moment_p_value(moment_values(found.x, exact.posterior.mean(), covariance)) > 0.01
    assert torch.allclose(found.log_prob.flatten(), exact.problem.log_prob(found.rows))
    assert torch.allclose(found.log_proposal.flatten(), proposal().log_prob(found.rows))
    assert found.statistics["global_acceptance"] > 0.3


def test_prior_proposals_in_a_bounded_problem():
    """Beta(2, 4) from a uniform prior by its own draws; mean within 6 standard errors over chains."""
    prior = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(1), torch.ones(1)), 1)
    problem = Problem(prior, likelihood=lambda x: (x.log() + 3 * (-x).log1p()).sum(-1))
    for local in (None, Local("langevin")):
        found = Independence(chains=16, local=local, warmup=50)(problem, 100)
        assert bool(((found.x > 0) & (found.x < 1)).all())
        assert abs(float(found.mean()) - 1 / 3) < 6 * float(found.x.mean(1).std()) / 4
        assert torch.allclose(found.log_proposal, torch.zeros(16, 100), atol=1e-4)


def test_a_proposal_that_misses_a_mode_is_seen_by_local_moves():
    """Chains that walk into the narrow proposal's tails stay there: k-hat, longest stay or R-hat warn."""
    exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [0.0])
    narrow = GaussianMixtureFlow([[0.0, 0.0]], 0.05)
    found = Independence(narrow, local=Local("langevin"), moves=1, chains=8, warmup=60)(exact.problem, 200)
    assert found.certificate.verdict != "passed"
    assert found.statistics["longest_stay"] > 0.1 or found.statistics["k_hat"] > 0.7


def test_a_proposal_with_tails_that_end_too_early_fails():
    """A Cauchy target from a normal proposal: chains agree with each other and know nothing of the tails, whose 95 % quantile
    is 12.7. From a wide Student proposal the same certificate does not fail."""
    cauchy = Energy(lambda x: x.square().log1p().sum(-1), 1, dtype=torch.float64)
    one = torch.ones(1, dtype=torch.float64)
    narrow = torch.distributions.Independent(torch.distributions.Normal(0 * one, one), 1)
    found = Independence(narrow)(cauchy, 1000, seed=1)
    assert float(found.rows.abs().quantile(0.95)) < 6
    assert found.certificate["draws that leave the proposal"].outcome == "failed"
    wide = torch.distributions.Independent(torch.distributions.StudentT(one, 0 * one, 2 * one), 1)
    found = Independence(wide)(cauchy, 1000, seed=1)
    assert found.statistics["escaped"] == 0 and found.certificate.verdict in ("passed", "warned")


@pytest.mark.parametrize(
    "features, deviation, outcomes",
    [(2, 1.3, ("passed", "passed")), (1, None, ("warned", "passed")), (20, 0.5, ("warned", "failed"))],
    ids=["wider", "Cauchy", "narrower in 20 dimensions"],
)
def test_k_hat_of_proposals_has_the_thresholds_of_weights(features, deviation, outcomes):
    """Weights are bounded for a wider normal; heavy for a Cauchy target from a normal; without a mean, as far as 8000 proposals
    tell, for a narrower normal in 20 dimensions: a failure, no warning. With local moves they are figures without threshold."""
    normal = torch.distributions.Normal(torch.zeros(features, dtype=torch.float64), deviation or 1.0)
    proposal = torch.distributions.Independent(normal, 1)
    energy = (lambda x: 0.5 * x.square().sum(-1)) if deviation else (lambda x: x.square().log1p().sum(-1))
    found = Independence(proposal)(Energy(energy, features, dtype=torch.float64), 1000, seed=1)
    names = ("k-hat of proposals", "k-hat of proposals, limit")
    assert tuple(found.certificate[name].outcome for name in names) == outcomes, found.statistics["k_hat"]
    assert all(test.outcome == "reported" for test in jump_tests(found, alone=False)[:2])


def test_chains_that_never_come_to_the_target_fail():
    """Nothing is lost and nothing passes where no proposal has a density > 0."""
    prior = torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.ones(2)), 1)
    problem = Problem(prior, likelihood=lambda x: torch.where(x[:, 0] > 6, 0.0, -torch.inf))
    found = Independence(warmup=10)(problem, 50)
    assert found.x.shape == (8, 50, 2)
    assert found.certificate["draws of density 0"].outcome == "failed"


def test_random_densities_and_wrong_shapes_are_refused():
    exact = gaussian_problem("identity")
    noisy = TransportFlow(10, network={"hidden": (8,)}, divergence=Hutchinson(1))
    with pytest.raises(UserError, match="random error"):
        Independence(noisy)(exact.problem, 10)
    with pytest.raises(UserError, match="event shape"):
        Independence(NeuralSplineFlow(3, transforms=2))(exact.problem, 10)
