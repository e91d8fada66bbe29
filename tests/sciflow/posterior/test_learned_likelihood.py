"""A likelihood learned from simulations, alone and pooled with a learned posterior, against closed forms."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from sciflow.errors import UserError
from sciflow.posterior import Problem
from sciflow.posterior.amortised import (
    AffineSplineFlow,
    LearnedLikelihood,
    MatchingRecipe,
    PooledPosterior,
    SplineRecipe,
    fit_likelihood,
    fit_pooled,
    held_out_scores,
)
from sciflow.posterior.amortised.regression import Regression
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import Importance

BOX = Independent(Uniform(-torch.ones(2), torch.ones(2)), 1)
SIGMA = 0.5
MATRIX = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, -1.0]])  # data of another size than the parameters
RECIPE = SplineRecipe(2, 6, (24,), "coupling", members=2, training={"epochs": 8, "batch_size": 200, "learning_rate": 1e-2})
SINGLE = SplineRecipe(2, 6, (24,), "coupling", members=1, training={"epochs": 8, "batch_size": 200, "learning_rate": 1e-2})


def simulated(rows: int = 3000, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    theta = 2 * torch.rand(rows, 2, generator=generator) - 1
    return theta, theta @ MATRIX.T + SIGMA * torch.randn(rows, 3, generator=generator)


def exact(y: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return Normal(theta.double() @ MATRIX.T.double(), SIGMA).log_prob(y.double()).sum(-1)


def grid(count: int = 300) -> torch.Tensor:
    middle = (torch.arange(count, dtype=torch.float64) + 0.5) / count * 2 - 1
    return torch.cartesian_prod(middle, middle)


@pytest.fixture(scope="module")
def pooled() -> PooledPosterior:
    theta, y = simulated()
    return fit_pooled(BOX, theta, y, flow=RECIPE, likelihood=RECIPE, scored=40, proposals=300, progress=False)


def test_residuals_of_a_straight_line_are_the_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    c = torch.randn(20_000, 2, generator=generator, dtype=torch.float64)
    noise = torch.randn(20_000, 1, generator=generator, dtype=torch.float64)
    regression = Regression(1, 2)
    y = 3 * c[:, :1] - c[:, 1:] + 5 + 0.1 * noise
    residual, ladj = regression.fit(y, c)(y, c)
    assert torch.allclose(residual, noise, atol=0.05) and float(ladj) == pytest.approx(-math.log(0.1), abs=0.02)
    assert torch.allclose(regression.inverse(residual, c), y)


def test_discrete_columns_are_found_spread_and_returned() -> None:
    generator = torch.Generator().manual_seed(0)
    c = torch.rand(2000, 1, generator=generator, dtype=torch.float64)
    y = torch.stack((0.5 * torch.poisson(4 * c[:, 0], generator=generator), c[:, 0]), 1)
    regression = Regression(2, 1).fit(y, c)
    assert regression.gap.tolist() == [0.5, 0.0]
    spread = regression.spread(y, torch.rand(2000, 2, generator=generator, dtype=torch.float64))
    assert float((spread - y)[:, 0].abs().max()) <= 0.25 and torch.equal(spread[:, 1], y[:, 1])
    assert torch.allclose(regression.inverse(regression(spread, c)[0], c), y)


def test_affine_layers_and_splines_are_one_bijection() -> None:
    torch.manual_seed(0)
    flow = AffineSplineFlow(3, condition=2, hidden=(16,), seed=1).double()
    for weight in flow.parameters():
        torch.nn.init.normal_(weight, std=0.3)
    x, c = torch.randn(5, 3, dtype=torch.float64), torch.randn(5, 2, dtype=torch.float64)
    z, ladj = flow.to_latent(x, c, None)
    assert torch.allclose(flow.to_data(z, c, None)[0], x, atol=1e-8)
    jacobian = torch.autograd.functional.jacobian(lambda row: flow.to_latent(row[None], c[:1], None)[0][0], x[0])
    assert float(jacobian.det().abs().log()) == pytest.approx(float(ladj[0].detach()), abs=1e-9)
    with pytest.raises(UserError, match="positive"):
        AffineSplineFlow(3, splines=0)


def test_probabilities_of_counts() -> None:
    """Binomial counts: log q is that of the probability, not of a density; 3000 simulations leave a few hundredths."""
    generator = torch.Generator().manual_seed(0)
    theta = torch.rand(3000, 1, generator=generator)
    y = (torch.rand(3000, 8, generator=generator) < 0.2 + 0.6 * theta).sum(1, keepdim=True).float()
    prior = Independent(Uniform(torch.zeros(1), torch.ones(1)), 1)
    found = fit_likelihood(prior, theta, y, flow=SINGLE, progress=False)
    at = torch.linspace(0.1, 0.9, 9).unsqueeze(1)
    counts = torch.arange(9.0)
    with torch.no_grad():
        q = torch.stack([found.log_prob(count.reshape(1), at) for count in counts]).exp()
    p = torch.distributions.Binomial(8, 0.2 + 0.6 * at[:, 0].double()).log_prob(counts.double().unsqueeze(1)).exp()
    assert float((q.sum(0) - 1).abs().max()) < 0.1 and float((q - p).abs().sum(0).max()) < 0.25
    draws = found.sample(at, torch.rand(9, found.uniforms((1,)), dtype=torch.float64))
    assert torch.equal(draws, draws.round())


def test_the_likelihood_is_close_to_that_of_the_simulator(pooled: PooledPosterior) -> None:
    """Mean log-ratio on fresh simulations, the divergence: 3000 simulations leave about 0.02 nats."""
    theta, y = simulated(2000, seed=1)
    with torch.no_grad():
        divergence = float((exact(y, theta) - pooled.likelihood.log_prob(y, theta)).mean())
    assert 0 < divergence < 0.06


def test_it_is_the_likelihood_of_a_problem(pooled: PooledPosterior) -> None:
    """Evidence against quadrature with the exact likelihood: 5 standard errors and what is left to learn."""
    y = torch.tensor([0.9, 0.0, 0.3])
    problem = Problem(BOX, y, pooled.likelihood)
    found = Importance(pooled.posterior.bind(y), coverage=0)(problem, 4000)
    truth = float(exact(y, grid()).logsumexp(0)) - math.log(len(grid()))
    assert found.evidence is not None and abs(found.evidence.log_value - truth) < 5 * found.evidence.error + 0.15
    precise = copy.deepcopy(pooled.likelihood).double()  # splines have kinks in the slope of log q: steps must be tiny
    at = torch.tensor([[0.2, -0.1]]).double().requires_grad_()
    (gradient,) = torch.autograd.grad(precise.log_prob(y, at).sum(), at)
    with torch.no_grad():
        steps = 1e-6 * torch.eye(2, dtype=torch.float64)
        slope = (precise.log_prob(y, at + steps) - precise.log_prob(y, at - steps)) / 2e-6
    assert torch.allclose(gradient[0], slope, rtol=1e-4, atol=1e-4)
    assert problem.value_and_gradient(at.detach().float())[1].isfinite().all()
    drawn = problem.simulate(torch.tensor([[0.5, -0.5]]).expand(4000, 2), Randomness(0, "test")).double()
    assert torch.allclose(drawn.mean(0), torch.tensor([0.5, -0.5, 1.0]).double(), atol=0.08)
    assert torch.allclose(drawn.std(0), torch.full((3,), SIGMA).double(), rtol=0.1)
    with pytest.raises(UserError, match=r"\(4,\)"):
        Problem(BOX, torch.zeros(4), pooled.likelihood)


def test_the_scores_are_those_of_the_posteriors(pooled: PooledPosterior) -> None:
    """Share 1 against log p(theta | y) by quadrature on the learned likelihood itself: within 5 errors of 300 proposals."""
    theta, y = simulated(40, seed=2)
    found = held_out_scores(pooled.posterior, pooled.likelihood, theta, y, shares=(0.0, 0.5, 1.0), proposals=1000)
    points, wanted = grid(60), []
    with torch.no_grad():
        for row in range(40):
            values = pooled.likelihood.log_prob(y[row], points)
            log_evidence = values.logsumexp(0) - math.log(len(points)) + math.log(4)
            wanted.append(pooled.likelihood.log_prob(y[row], theta[row : row + 1])[0] - log_evidence)
        own = torch.cat([pooled.posterior.log_prob(theta[row : row + 1], y[row]) for row in range(40)]).mean()
    assert float(found.mean[2]) == pytest.approx(float(torch.stack(wanted).mean()), abs=0.02)
    assert float(found.mean[0]) == pytest.approx(float(own), abs=0.02)
    assert bool((found.gap >= 0).all()) and float(found.gap.max()) < 0.02
    assert found.best == found.shares[int(found.mean.argmax())]


def test_draws_of_the_pool(pooled: PooledPosterior) -> None:
    """Means against quadrature: 4 standard errors of 3000 draws and what 3000 simulations leave."""
    y = torch.tensor([0.9, 0.0, 0.3])
    assert pooled.share > 0  # the likelihood is a straight line with normal noise here, the posterior is cut at the edges
    found = pooled(y, 3000, seed=1)
    weight = exact(y, grid()).softmax(0).unsqueeze(1)
    mean = (weight * grid()).sum(0)
    spread = (weight * (grid() - mean).square()).sum(0).sqrt()
    assert torch.allclose(found.x[0].double().mean(0), mean, atol=0.06)
    assert torch.allclose(found.x[0].double().std(0), spread, rtol=0.12)
    assert found.certificate.verdict == "incomplete"  # nobody has compared it with the posterior
    assert found.certificate["agreement of posterior and likelihood"].passed
    assert torch.equal(pooled(y, 3000, seed=1).x, found.x)


def test_the_pool_has_the_gradient_of_both_models(pooled: PooledPosterior) -> None:
    pool = copy.deepcopy(pooled).double().target(torch.tensor([0.9, 0.0, 0.3]))
    pool.share = 0.3
    at = torch.tensor([[0.2, -0.1], [0.5, 0.7]], dtype=torch.float64)
    value, gradient = pool.value_and_gradient(at)
    for feature in range(2):
        step = 1e-5 * torch.eye(2, dtype=torch.float64)[feature]
        with torch.no_grad():
            slope = (pool.log_prob(at + step) - pool.log_prob(at - step)) / 2e-5
        assert torch.allclose(gradient[:, feature], slope, rtol=1e-3, atol=1e-2)
    q, joint = pool.parts(at)
    assert torch.allclose(value, 0.7 * q + 0.3 * joint) and not value.requires_grad
    assert float(pool.log_prob(torch.tensor([[1.2, 0.0]]))) == -math.inf


def test_models_that_disagree_are_noticed(pooled: PooledPosterior) -> None:
    y = torch.tensor([0.0, 0.0, 0.0])
    offset = pooled.likelihood.regression.offset
    offset += 6 * SIGMA
    try:
        test = pooled(y, 500).certificate["agreement of posterior and likelihood"]
    finally:
        offset -= 6 * SIGMA
    assert test.outcome == "warned"
    refined = pooled(y, 500, refine=True, likelihood=lambda theta: exact(y, theta))
    assert refined.certificate["agreement of posterior and likelihood"].passed and refined.certificate.verdict != "incomplete"


def test_saved_and_loaded(pooled: PooledPosterior, tmp_path: Path) -> None:
    y = torch.tensor([0.5, 0.0, 0.5])
    again = PooledPosterior.load(pooled.save(tmp_path / "both"), prior=BOX)
    assert torch.equal(again(y, 50).x, pooled(y, 50).x) and again.share == pooled.share
    likelihood = LearnedLikelihood.load(pooled.likelihood.save(tmp_path / "likelihood"))
    theta, data = simulated(10)
    assert torch.equal(likelihood.log_prob(data, theta), pooled.likelihood.log_prob(data, theta))


def test_bad_arguments() -> None:
    theta, y = simulated(100)
    with pytest.raises(UserError, match="mask"):
        fit_likelihood(BOX, theta, {"observations": y, "mask": torch.ones(100, 3, dtype=torch.bool)}, progress=False)
    with pytest.raises(UserError, match="cheap density"):
        fit_likelihood(BOX, theta, y, flow=MatchingRecipe((8,)), progress=False)
    with pytest.raises(UserError, match="validation > 0"):
        fit_pooled(BOX, theta, y, validation=0, progress=False)
