"""Supports, edges of supports and changed priors: known answers where a certificate would not know better."""

from __future__ import annotations

import math

import pytest
import torch
from scipy import special
from torch.distributions import (
    AffineTransform,
    Beta,
    Dirichlet,
    Gamma,
    Independent,
    LogNormal,
    Normal,
    TransformedDistribution,
    Uniform,
    VonMises,
    constraints,
)

from sciflow.errors import UserError
from sciflow.posterior import Prior, Problem, Randomness
from sciflow.posterior.amortised import AmortisedPosterior, Region, SplineRecipe, TruncatedPrior, fit_posterior
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.samplers import AnnealedImportance, Defensive, Importance, TemperedSMC

SMALL = SplineRecipe(2, 6, (16,), "coupling", members=1, training={"epochs": 4, "batch_size": 100, "learning_rate": 1e-2})
# E[exp(-x)] under each prior
EDGES = {
    "beta": (Beta(torch.tensor(0.1), torch.tensor(0.1)), math.log(special.hyp1f1(0.1, 0.2, -1))),
    "gamma": (Gamma(torch.tensor(0.01), torch.tensor(0.01)), 0.01 * math.log(0.01 / 1.01)),
}


def box(low: list[float], high: list[float]) -> Independent:
    return Independent(Uniform(torch.tensor(low), torch.tensor(high), validate_args=False), 1)


def learned(prior: Independent, sigma: torch.Tensor, rows: int = 600) -> AmortisedPosterior:
    theta = Prior(prior).draw(rows, Randomness(0, "training"))
    y = theta + sigma * torch.randn(theta.shape, generator=torch.Generator().manual_seed(0))
    return fit_posterior(prior, theta, y, flow=SMALL, progress=False)


def test_boxes_with_unequal_sides() -> None:
    """log Z of a normal well inside of a box of area 10 within 5 standard errors: false alarm below 1e-6."""
    prior, sigma = box([0.0, 0.0], [1.0, 10.0]), torch.tensor([0.1, 1.0])
    posterior = learned(prior, sigma)
    problem = Problem(prior, torch.tensor([0.5, 5.0]), Gaussian(sigma))
    bound = posterior.bind(problem.observation)
    points = torch.tensor([[0.5, 5.0], [0.5, 10.5], [1.5, 5.0]])
    assert bound.support.check(points).tolist() == [True, False, False]
    assert Prior(bound).log_prob(bound.sample((500,))).isfinite().all()
    found = posterior(problem.observation, 100, refine=True, likelihood=problem, proposals=4000)
    assert found.evidence is not None and abs(found.evidence.log_value + math.log(10)) < 5 * found.evidence.error


def test_bounds_on_one_side_and_on_none() -> None:
    prior = Prior.product({"a": Uniform(torch.tensor(0.0), torch.tensor(1.0)), "b": Gamma(torch.tensor(2.0), torch.tensor(1.0)),
                           "c": Normal(torch.tensor(0.0), torch.tensor(1.0))})  # fmt: skip
    theta = prior.draw(100, Randomness(0, "training"))
    bound = fit_posterior(prior, theta, theta, flow=SMALL, training={"epochs": 1}, progress=False).bind(theta[0])
    inside = bound.support.check(torch.tensor([[0.5, 3.0, -3.0], [0.5, -1.0, 0.0], [2.0, 3.0, 0.0]]))
    assert inside.reshape(3, -1).all(1).tolist() == [True, False, False]
    assert Prior(bound).log_prob(bound.sample((50,))).isfinite().all()


@pytest.mark.parametrize("name", EDGES)
def test_priors_whose_draws_crowd_at_the_edge(name: str) -> None:
    """Single precision has no numbers where much of these priors is. 4 standard errors: false alarm 6e-5 each."""
    prior, exact = EDGES[name]
    problem = Problem(prior, likelihood=lambda x: -x)
    found = Importance(coverage=0)(problem, 8000, progress=False)
    assert found.evidence is not None and abs(found.evidence.log_value - exact) < 4 * found.evidence.error
    assert found.certificate.verdict == "warned" and found.certificate["prior at the edge of its support"].outcome == "warned"
    chains = AnnealedImportance(betas=[0.0, 1.0], pilot=50)(problem, 200, progress=False)
    assert chains.evidence is not None and math.isfinite(chains.evidence.log_value)
    assert chains.certificate.verdict in ("warned", "failed")


def test_prior_draws_that_underflow_keep_their_likelihood() -> None:
    """Log-normal draws mostly round to 0, where the density is not a number: E[1] = 1 without any error."""
    prior = LogNormal(torch.tensor(-300.0), torch.tensor(100.0), validate_args=False)
    found = Importance(coverage=0)(Problem(prior, likelihood=lambda x: 0 * x), 1000, progress=False)
    assert not bool(found.log_prob.isfinite().all()) and found.evidence.log_value == pytest.approx(0.0, abs=1e-12)


def test_draws_stay_inside_of_open_supports() -> None:
    for distribution in (EDGES["beta"][0], EDGES["gamma"][0], Dirichlet(torch.tensor([0.01, 0.01, 2.0]))):
        x = Prior(distribution).draw(20_000, Randomness(0, "edge"))
        assert Prior(distribution).log_prob(x).isfinite().all()


def test_what_is_lost_at_the_edge_is_known_and_told() -> None:
    """P(X < tiny) and P(X > 1 - eps), as draws in double precision have them: 4 sd of 20,000 draws."""
    small, near = torch.finfo(torch.float32).tiny, 1 - torch.finfo(torch.float32).eps
    beta = Prior(EDGES["beta"][0])
    exact = Prior(Beta(torch.tensor(0.1, dtype=torch.float64), torch.tensor(0.1, dtype=torch.float64)))
    x = exact.draw(20_000, Randomness(0, "lost"))
    share = float(((x < small) | (x > near)).double().mean())
    assert abs(beta.unresolved() - share) < 4 * math.sqrt(share / 20_000) and beta.unresolved() > 0.05
    flat = TemperedSMC(pilot=50)(Problem(beta, likelihood=lambda x: 0 * x), 50, progress=False)
    test = flat.certificate["prior at the edge of its support"]
    assert test.outcome == "warned" and test.value == pytest.approx(beta.unresolved()) and "float32" in test.description
    assert Prior.product({"a": EDGES["beta"][0], "b": Normal(0.0, 1.0)}).unresolved() == pytest.approx(beta.unresolved())
    assert Prior(Gamma(torch.tensor(2.0), torch.tensor(1.0))).unresolved() < 1e-30
    assert Prior(box([0.0], [1.0])).unresolved() == 0
    calm = Importance(coverage=0)(Problem(box([0.0], [1.0]), likelihood=lambda x: -x[:, 0]), 1000, progress=False)
    assert "prior at the edge of its support" not in [test.name for test in calm.certificate.tests]


def test_angles_end_where_their_density_does() -> None:
    """Mean of a von Mises prior under a flat likelihood: chains on all of R would leave for other turns."""
    prior = Prior(Independent(VonMises(torch.tensor([3.0]), torch.tensor([1.0])), 1))
    x = torch.tensor([[3.1], [3.2], [-3.2], [9.0]])
    assert prior.log_prob(x).isfinite().tolist() == [True, False, False, False]
    assert isinstance(Prior(VonMises(torch.tensor(0.0), torch.tensor(1.0))).support, type(constraints.interval(0, 1)))
    assert Prior(VonMises(torch.tensor(3.0), torch.tensor(4.0))).log_prob(
        Prior(VonMises(torch.tensor(3.0), torch.tensor(4.0))).draw(2000, Randomness(0, "angles"))).isfinite().all()  # fmt: skip
    turned = TransformedDistribution(VonMises(torch.tensor(0.0), torch.tensor(1.0)), [AffineTransform(0.0, 2.0)])
    with pytest.raises(UserError, match="von Mises"):
        Prior(turned)


def test_a_truncated_prior_is_no_part_of_a_mixture_of_proposals() -> None:
    """log Z = 0 of a narrow normal inside of the unit box, refined under a prior cut to a fortieth.

    5 standard errors: false alarm below 1e-6.
    """
    prior, sigma = Prior(box([0.0], [1.0])), 0.02
    posterior = learned(prior.distribution, torch.tensor([sigma]))
    y = torch.tensor([0.5])
    truncated = TruncatedPrior(prior, Region(posterior.bind(y), mass=1e-3))
    problem = Problem(prior, y, Gaussian(sigma))
    found = posterior.with_prior(truncated)(y, 100, refine=True, likelihood=problem, proposals=20_000)
    assert found.evidence is not None and abs(found.evidence.log_value) < 5 * found.evidence.error
    assert found.certificate["draws outside of the prior"].value < 0.01
    with pytest.raises(UserError, match="without its constant"):
        Defensive([posterior.bind(y), truncated])
    with pytest.raises(UserError, match="without its constant"):
        Importance(truncated)(problem, 100)


def test_draws_under_another_prior_are_named() -> None:
    """q was learned under U(-5, 5); under N(0, 0.1) the posterior at y = 3 is another one altogether."""
    prior = box([-5.0], [5.0])
    posterior = learned(prior, torch.tensor([1.0]))
    y = torch.tensor([3.0])
    name = "prior of the training"
    assert name not in [test.name for test in posterior(y, 200).certificate.tests]
    other = posterior.with_prior(Independent(Normal(torch.zeros(1), 0.1 * torch.ones(1)), 1))
    assert other(y, 200).certificate[name].outcome == "failed" and other(y, 200).certificate.verdict == "failed"
    assert "refine=True" in other(y, 200).certificate[name].description
    narrow = posterior.with_prior(box([-4.0], [4.0]))
    assert narrow(y, 200).certificate[name].outcome == "passed"
    refined = other(y, 20, refine=True, likelihood=lambda theta: -0.5 * (theta[:, 0] - 3.0).square())
    assert name not in [test.name for test in refined.certificate.tests]
