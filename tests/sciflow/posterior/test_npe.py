"""Amortised posteriors against closed forms, and what may go wrong on the way."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, MultivariateNormal, Uniform

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior.amortised import (
    AmortisedPosterior,
    MatchingRecipe,
    Perceptron,
    Region,
    SplineRecipe,
    TruncatedPrior,
    fit_posterior,
    fit_rounds,
)
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.importance import Importance

BOX = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
SMALL = {"epochs": 12, "batch_size": 100, "learning_rate": 5e-3}
RECIPE = SplineRecipe(2, 6, (24,), "coupling", training=SMALL)
SIGMA = 0.5


def simulated(rows: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(rows, 2, generator=generator) - 1
    return theta, theta + SIGMA * torch.randn(rows, 2, generator=generator)


@pytest.fixture(scope="module")
def posterior() -> AmortisedPosterior:
    theta, y = simulated()
    return fit_posterior(BOX, theta, y, flow=RECIPE, progress=False)


def truncated_mean(y: float) -> float:
    """E[theta | y] for theta ~ U(-1, 1), y ~ N(theta, SIGMA^2): a truncated normal."""
    normal = torch.distributions.Normal(0.0, 1.0)
    a, b = (torch.tensor((edge - y) / SIGMA) for edge in (-1.0, 1.0))
    return float(y - SIGMA * (normal.log_prob(b).exp() - normal.log_prob(a).exp()) / (normal.cdf(b) - normal.cdf(a)))


def test_draws_are_close_to_the_truncated_normal_and_never_leave_the_prior(posterior: AmortisedPosterior) -> None:
    found = posterior(torch.tensor([0.9, 0.0]), 4000)
    assert float(found.x.abs().max()) <= 1.0 and found.statistics["outside"] == 0.0
    # 4 sd of the Monte Carlo error plus what 3000 simulations leave
    assert (found.mean() - torch.tensor([truncated_mean(0.9), 0.0])).abs().max() < 0.06
    assert found.certificate["draws outside of the prior"].passed
    assert found.certificate.verdict == "incomplete"  # nobody has compared it with the posterior
    assert found.log_proposal is not None and torch.allclose(
        found.log_proposal[0], posterior.log_prob(found.x[0], torch.tensor([0.9, 0.0])), atol=1e-3
    )


def test_the_density_is_one(posterior: AmortisedPosterior) -> None:
    edges = torch.linspace(-1, 1, 201, dtype=torch.float64)
    middle = 0.5 * (edges[1:] + edges[:-1])
    grid = torch.cartesian_prod(middle, middle)
    mass = posterior.log_prob(grid, torch.tensor([0.7, -0.2])).exp().sum() * 0.01**2
    assert float(mass) == pytest.approx(1.0, abs=0.01)
    assert float(posterior.log_prob(torch.tensor([[1.5, 0.0]]), torch.zeros(2))) == -math.inf


def test_refined_draws_are_the_posterior(posterior: AmortisedPosterior) -> None:
    """Mean and spread of 4000 draws within 5 standard errors of a truncated normal: false alarm below 1e-5."""
    problem = Problem(BOX, torch.tensor([0.9, 0.0]), Gaussian(SIGMA))
    found = posterior(problem.observation, 4000, refine=True, likelihood=problem, seed=1)
    x = found.x[0].double()
    mean = torch.tensor([truncated_mean(0.9), 0.0], dtype=torch.float64)
    assert ((x.mean(0) - mean).abs() < 5 * x.std(0) / math.sqrt(4000 / 2)).all()
    assert found.statistics["k_hat"] < 0.7 and found.certificate["distinct draws"].value == 4000
    assert found.certificate.verdict == "passed", found.certificate
    # p(y) of a normal cut off at the edges of the box, times the prior's density 1/4
    normal = torch.distributions.Normal(0.0, 1.0)
    side = [normal.cdf(torch.tensor((1 - y) / SIGMA)) - normal.cdf(torch.tensor((-1 - y) / SIGMA)) for y in (0.9, 0.0)]
    assert found.evidence is not None
    assert abs(found.evidence.log_value - float(torch.log(side[0] * side[1] / 4))) < 5 * found.evidence.error
    same = posterior(problem.observation, 4000, refine=True, seed=1,
                     likelihood=lambda t: -0.5 * ((t - problem.observation) / SIGMA).square().sum(-1))  # fmt: skip
    assert torch.allclose(same.x, found.x.to(same.x.dtype), atol=1e-4)


def test_few_effective_proposals_are_a_warning_whatever_k_hat_says(posterior: AmortisedPosterior) -> None:
    """A target a tenth as wide as q has bounded weights, and 2 % of the proposals are effective: 300 of 16000."""

    def narrow(theta: torch.Tensor) -> torch.Tensor:
        return -0.5 * (theta / (0.1 * SIGMA)).square().sum(-1)

    few = posterior(torch.zeros(2), 4000, refine=True, likelihood=narrow, proposals=16000)
    assert few.statistics["k_hat"] < 0.7 and 100 < few.statistics["effective"] < 400
    assert few.certificate["effective draws"].outcome == "warned" and few.certificate.verdict == "warned"
    assert few.certificate["distinct draws"].value == len(few.x[0].unique(dim=0)) == 4000
    assert few.statistics["ancestors"] < 4000
    assert posterior(torch.zeros(2), 1000, refine=True, likelihood=narrow).certificate["effective draws"].passed


def test_the_bound_posterior_is_a_proposal_of_other_samplers(posterior: AmortisedPosterior) -> None:
    """The evidence of a truncated normal within 5 standard errors: false alarm below 1e-5."""
    problem = Problem(BOX, torch.zeros(2), Gaussian(SIGMA))
    found = Importance(posterior.bind(problem.observation), coverage=0)(problem, 4000)
    inside = 1 - 2 * float(torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(-1 / SIGMA)))
    assert found.evidence is not None and found.statistics["k_hat"] < 0.7
    assert abs(found.evidence.log_value - math.log(inside**2 / 4)) < 5 * found.evidence.error


def test_a_likelihood_of_another_model_is_noticed(posterior: AmortisedPosterior) -> None:
    found = posterior(torch.zeros(2), 500, refine=True, likelihood=lambda t: -0.5 * ((t - 0.97) / 0.003).square().sum(-1))
    assert found.certificate.verdict != "passed"
    with pytest.raises(UserError, match="likelihood 0"):
        posterior(torch.zeros(2), 100, refine=True, likelihood=lambda t: torch.full((len(t),), -torch.inf))
    with pytest.raises(UserError, match="needs likelihood"):
        posterior(torch.zeros(2), 100, refine=True)
    for proposals in (99, 150.5, -1):
        with pytest.raises(UserError, match="proposals"):
            posterior(torch.zeros(2), 100, refine=True, proposals=proposals, likelihood=lambda t: -t.square().sum(-1))


def test_addressed_randomness(posterior: AmortisedPosterior) -> None:
    first = posterior(torch.zeros(2), 50, seed=3).x
    assert torch.equal(first, posterior(torch.zeros(2), 50, seed=3).x)
    assert torch.allclose(first[:, :20], posterior(torch.zeros(2), 20, seed=3).x, atol=1e-5)
    assert not torch.equal(first, posterior(torch.zeros(2), 50, seed=4).x)


def test_saved_and_loaded(posterior: AmortisedPosterior, tmp_path: Path) -> None:
    again = AmortisedPosterior.load(posterior.save(tmp_path / "npe"), prior=BOX)
    assert torch.equal(again(torch.zeros(2), 30).x, posterior(torch.zeros(2), 30).x)
    assert int(again.simulations) == 3000 and repr(again) == repr(posterior)


def test_strange_observations(posterior: AmortisedPosterior) -> None:
    assert not posterior(torch.tensor([3.2, 0.0]), 10).certificate["distance to the simulations"].passed
    with pytest.raises(UserError, match="does not cover it"):
        posterior(torch.tensor([50.0, 0.0]), 10)
    assert posterior(torch.tensor([50.0, 0.0]), 10, force=True).x.isfinite().all()
    assert posterior(torch.zeros(2), 10, out_of_distribution=lambda y: 2.0).certificate.verdict == "incomplete"
    for wrong, message in ((torch.tensor([0.0, torch.nan]), "NaN or infinite"), (torch.zeros(3), r"expected \(2,\)"),
                           (torch.zeros(2) * 1j, "observation: complex numbers.*view_as_real")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            posterior(wrong, 10)


def test_failed_simulations_are_left_out_and_counted() -> None:
    theta, y = simulated(200)
    y[:30, 0] = torch.nan
    theta[30, 1] = torch.inf
    found = fit_posterior(BOX, theta, y, flow=RECIPE, training={"epochs": 1}, progress=False)
    assert int(found.excluded) == 31 and int(found.simulations) == 169
    test = found(torch.zeros(2), 10).certificate["simulations excluded"]
    assert test.value == pytest.approx(31 / 200) and test.outcome == "warned"
    with pytest.raises(UserError, match="0 are left"):
        fit_posterior(BOX, theta, torch.full_like(y, torch.nan), progress=False)


def test_data_that_are_numbers() -> None:
    """y (N,) is (N, 1): the same weights and draws, for observations given as numbers too."""
    theta, y = simulated(200)
    flat, wide = (
        fit_posterior(BOX, theta, entry, flow=RECIPE, training={"epochs": 1}, progress=False) for entry in (y[:, 0], y[:, :1])
    )
    found, wanted = flat(torch.tensor(0.3), 20), wide(torch.tensor([0.3]), 20)
    assert torch.equal(found.x, wanted.x) and torch.equal(flat(0.3, 20).x, wanted.x)
    more, there = simulated(50, seed=1)
    pair = [flat.calibrated((more, entry), draws=5)(torch.tensor(0.3), 20).certificate for entry in (there[:, 0], there[:, :1])]
    assert pair[0].tests == pair[1].tests


def test_wrong_arguments() -> None:
    theta, y = simulated(100)
    for arguments, message in (
        ((BOX, 2 * theta, y), "outside of the prior's support"),
        ((BOX, theta[:50], y), "one row per simulation"),
        ((BOX, theta[:0], y[:0]), "0 are left"),
        ((torch.distributions.Dirichlet(torch.ones(2)), theta, y), "no product of intervals"),
        ((BOX, torch.zeros(100, 2), y), "do not vary"),
        ((BOX, theta, torch.complex(y, y)), r"simulated data: complex numbers \(100, 2\).*view_as_real"),
    ):
        with pytest.raises(UserError, match=message):
            fit_posterior(*arguments, progress=False)
    with pytest.raises(UserError, match="choose joint, matching, spline"):
        fit_posterior(BOX, theta, y, flow="maf", progress=False)


def test_matching_ensembles_embeddings_and_given_flows() -> None:
    theta, y = simulated(300)
    once = {"epochs": 1, "batch_size": 100}
    matching = fit_posterior(BOX, theta, y, flow=MatchingRecipe((16,), steps=4, training=once), progress=False)
    assert matching(torch.zeros(2), 20).log_proposal is None
    assert matching(torch.zeros(2), 20, density=True).log_proposal is not None
    two = fit_posterior(BOX, theta, y, flow=SplineRecipe(2, 4, (8,), members=2, training=once), progress=False)
    drawn = two(torch.zeros(2), 64)
    assert drawn.log_proposal is not None
    parts = torch.stack([two.bind(torch.zeros(2)).log_prob(drawn.x[0])])
    assert torch.allclose(parts[0], drawn.log_proposal[0]) and len(two.flows) == 2
    image = y.reshape(-1, 1, 2, 1)
    embedded = fit_posterior(BOX, theta, image, embedding=Perceptron(2, 3, (8,)), flow=RECIPE, training=once, progress=False)
    assert embedded(image[0], 5).x.shape == (1, 5, 2)
    given = fit_posterior(BOX, theta, y, flow=NeuralSplineFlow(2, condition=2, transforms=2, hidden=(8,)), training=once,
                          progress=False)  # fmt: skip
    assert given(y[0], 5).x.shape == (1, 5, 2)


def test_priors_without_bounds_and_with_one() -> None:
    prior = MultivariateNormal(torch.zeros(1), torch.eye(1))
    theta = prior.sample((200,))
    found = fit_posterior(prior, theta, theta + 0.1, flow=RECIPE, training={"epochs": 1}, progress=False)
    assert found(torch.zeros(1), 5).x.isfinite().all()
    positive = Independent(torch.distributions.Exponential(torch.ones(1)), 1)
    theta = positive.sample((200,))
    found = fit_posterior(positive, theta, theta + 0.1, flow=RECIPE, training={"epochs": 1}, progress=False)
    assert (found(torch.zeros(1), 500).x > 0).all()


def test_truncated_prior_by_rejection_and_by_resampling(posterior: AmortisedPosterior) -> None:
    region = Region(posterior.bind(torch.tensor([0.5, 0.5])), mass=0.3, draws=4000)
    plain = TruncatedPrior(posterior.prior, region)  # type: ignore[arg-type]
    a = plain.draw(2000, Randomness(0, "a"))
    b = TruncatedPrior(posterior.prior, region, least=1.1).draw(2000, Randomness(0, "b"))[-1000:]  # type: ignore[arg-type]
    assert region.check(a).all() and region.check(b).all() and 0.01 < plain.acceptance < 0.9
    assert (a.mean(0) - b.mean(0)).abs().max() < 6 * float(a.std()) / math.sqrt(1000)
    assert torch.allclose(plain.log_prob(a[:5]), torch.full((5,), -math.log(4.0)))


def test_rounds_narrow_the_prior() -> None:
    def simulator(theta, random):  # type: ignore[no-untyped-def]
        return theta + 0.1 * random.normal(size=2)

    y = torch.tensor([0.3, -0.6])
    found = fit_rounds(BOX, simulator, y, rounds=2, simulations=400, flow=RECIPE, progress=False, mass=1e-2)
    assert len(found.simulations.theta) == 800 and found.acceptances[0] < 0.8
    draws = found.posterior(torch.tensor([0.3, -0.6]), 1000)
    assert (draws.mean() - torch.tensor([0.3, -0.6])).abs().max() < 0.1 and draws.statistics["outside"] < 0.5
