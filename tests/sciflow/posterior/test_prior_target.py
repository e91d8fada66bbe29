"""Priors: draws, supports, names, flows; and targets in unconstrained coordinates."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor
from torch import distributions as D

from sciflow.errors import UserError
from sciflow.posterior import Energy, Prior, Problem, Randomness, Unconstrained
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.problems import GaussianMixtureFlow
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers.sde import SDEStep

pytestmark = pytest.mark.usefixtures("double")


@pytest.fixture
def double() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def _t(*values: float) -> Tensor:
    return torch.tensor(values)


PRIORS: dict[str, Any] = {
    "uniform": lambda: D.Independent(D.Uniform(_t(-1.0, 10.0), _t(2.0, 1000.0)), 1),
    "beta": lambda: D.Independent(D.Beta(_t(2.0, 0.5), _t(3.0, 0.5)), 1),
    "gamma": lambda: D.Independent(D.Gamma(_t(0.5, 3.0), _t(2.0, 0.1)), 1),
    "inverse gamma": lambda: D.Independent(D.InverseGamma(_t(6.0), _t(2.0)), 1),
    "dirichlet": lambda: D.Dirichlet(_t(0.8, 2.0, 3.0)),
    "half normal": lambda: D.Independent(D.HalfNormal(_t(2.0)), 1),
    "log normal": lambda: D.Independent(D.LogNormal(_t(0.0, 1.0), _t(0.5, 0.2)), 1),
    "student": lambda: D.Independent(D.StudentT(_t(5.0), _t(1.0), _t(2.0)), 1),
    "pareto": lambda: D.Independent(D.Pareto(_t(1.0), _t(6.0)), 1),
    "von mises": lambda: D.Independent(D.VonMises(_t(0.3), _t(2.0)), 1),
    "normal": lambda: D.MultivariateNormal(_t(0.0, 1.0), torch.tensor([[1.0, 0.5], [0.5, 2.0]])),
    "mixture": lambda: D.MixtureSameFamily(
        D.Categorical(_t(0.3, 0.7)), D.Independent(D.Normal(torch.tensor([[-2.0], [2.0]]), 0.5), 1)
    ),
    "scalar": lambda: D.Gamma(_t(2.0)[0], _t(1.0)[0]),
    "product": lambda: Prior.product(
        {
            "mass": D.Gamma(_t(2.0)[0], _t(1.0)[0]),
            "angle": D.Uniform(_t(0.0)[0], _t(6.0)[0]),
            "shares": D.Dirichlet(_t(1.0, 2.0, 3.0)),
            "field": D.Independent(D.Normal(torch.zeros(2, 2), 1.0), 2),
        }
    ),
}
every = pytest.mark.parametrize("name", PRIORS)


def _prior(name: str) -> Prior:
    built = PRIORS[name]()
    return built if isinstance(built, Prior) else Prior(built)


def _energy(prior: Prior) -> Energy:
    return Energy(lambda x: -prior.log_prob(x), tuple(prior.event_shape), support=prior.support, dtype=torch.float64)


@every
def test_draws_are_in_the_support_and_have_the_right_moments(name: str) -> None:
    """Means within five standard errors of 4000 draws: false alarm below 1e-5 per test."""
    prior = _prior(name)
    x = prior.draw(4000, Randomness(1, "draws"))
    assert x.shape == (4000, *prior.event_shape) and x.dtype is torch.float64 and bool(prior.log_prob(x).isfinite().all())
    if name == "product":
        mean = torch.cat([part.distribution.mean.reshape(-1) for part in prior.distribution.parts.values()])
    else:
        mean = prior.distribution.mean
    assert bool(((x.mean(0) - mean).abs() < 5 * x.std(0) / 4000**0.5).all())
    if name not in ("von mises", "mixture"):  # rows have addresses
        torch.testing.assert_close(prior.draw(10, Randomness(1, "draws", start=90)), x[90:100])
    assert torch.equal(prior.draw(10, Randomness(1, "draws")), prior.draw(10, Randomness(1, "draws")))


def test_inverse_distribution_functions_against_scipy() -> None:
    """Kolmogorov-Smirnov at p > 1e-4 with 3000 draws: false alarm 1e-4 each, seeded."""
    for built, law in (
        (D.Gamma(_t(0.3)[0], _t(2.0)[0]), stats.gamma(0.3, scale=0.5)),
        (D.Beta(_t(0.5)[0], _t(2.0)[0]), stats.beta(0.5, 2)),
        (D.StudentT(_t(2.5)[0], _t(1.0)[0], _t(2.0)[0]), stats.t(2.5, 1, 2)),
        (D.Chi2(_t(3.0)[0]), stats.chi2(3)),
    ):
        assert stats.kstest(Prior(built).draw(3000, Randomness(2, "ks")).numpy(), law.cdf).pvalue > 1e-4
    x = Prior(D.Dirichlet(_t(0.8, 2.0, 3.0))).draw(3000, Randomness(2, "ks"))
    assert stats.kstest(x[:, 1].numpy(), stats.beta(2.0, 3.8).cdf).pvalue > 1e-4


@every
def test_density_outside_of_the_support_is_zero(name: str) -> None:
    prior = _prior(name)
    x = prior.draw(4, Randomness(0, "x"))
    outside = torch.full_like(x, torch.nan)
    assert bool((prior.log_prob(outside) == -torch.inf).all())
    if name not in ("normal", "student", "mixture", "von mises"):
        x[1] = -5e3 * torch.ones_like(x[1])
        assert prior.log_prob(x).isfinite().tolist() == [True, False, True, True]
        point = x.clone().requires_grad_()
        value = prior.log_prob(point).sum() + 0 * point.sum()  # a uniform density has no gradient of its own
        (gradient,) = torch.autograd.grad(value, point)
        assert bool(gradient.isfinite().all()) and bool((gradient[1] == 0).all())


@every
def test_unconstrained_round_trip_and_jacobian(name: str) -> None:
    prior = _prior(name)
    target = Unconstrained(_energy(prior))
    x = prior.draw(20, Randomness(3, "u"))
    u = target.unconstrain(x)
    assert u.shape == (20, *target.event_shape)
    torch.testing.assert_close(target.constrain(u), x, atol=1e-8, rtol=1e-6)
    wanted = []
    shares = {"dirichlet": [2], "product": [4]}.get(name, [])  # the density of a simplex is over all but its last entry
    for row in u:
        jacobian = torch.autograd.functional.jacobian(lambda v: target.constrain(v.unsqueeze(0))[0], row)
        rows = [i for i in range(x[0].numel()) if i not in shares]
        wanted.append(torch.linalg.slogdet(jacobian.reshape(-1, max(row.numel(), 1))[rows])[1])
    torch.testing.assert_close(target.log_prob(u) - target.inner.log_prob(x), torch.stack(wanted), atol=1e-6, rtol=1e-6)
    far = torch.full_like(u[:2], 1e4)
    value, gradient = target.value_and_gradient(torch.cat([far, -far, u[:1]]))
    assert not bool(value.isnan().any()) and bool(gradient.isfinite().all())


@pytest.mark.parametrize("name", ["uniform", "beta", "gamma", "dirichlet"])
def test_unconstrained_density_is_normalised(name: str) -> None:
    """The integral of exp log p(u) by importance from a wide Student proposal is 1 within five standard errors."""
    target = Unconstrained(_energy(_prior(name)))
    proposal = D.Independent(D.StudentT(torch.full(target.event_shape, 2.0), 0.0, 3.0), 1)
    torch.manual_seed(0)
    u = proposal.sample((40_000,))
    weight = (target.log_prob(u) - proposal.log_prob(u)).exp()
    assert (weight.mean() - 1).abs() < 5 * weight.std() / 200


def test_named_parameters() -> None:
    prior = _prior("product")
    assert prior.names == [
        "mass",
        "angle",
        "shares[0]",
        "shares[1]",
        "shares[2]",
        "field[0,0]",
        "field[0,1]",
        "field[1,0]",
        "field[1,1]",
    ]
    x = prior.draw(3, Randomness(0, "n"))
    parts = prior.split(x)
    assert parts["mass"].shape == (3,) and parts["field"].shape == (3, 2, 2)
    assert torch.equal(prior.join(parts), x)
    wanted = sum(prior.distribution.parts[key].log_prob(value) for key, value in parts.items())
    torch.testing.assert_close(prior.log_prob(x), wanted)
    problem = Problem(prior, likelihood=lambda x: -prior.split(x)["mass"])
    assert problem.names == prior.names and Unconstrained(problem).draw_prior(3, Randomness(0, "n")).shape == (3, 8)
    assert Prior(_prior("normal").distribution, names=["a", "b"]).names == ["a", "b"]
    with pytest.raises(ValueError, match=r"field has shape \(3,\), expected \(..., 2, 2\)"):
        prior.join({**parts, "field": torch.zeros(3)})
    with pytest.raises(ValueError, match="expected"):
        prior.join({"mass": parts["mass"]})
    with pytest.raises(UserError, match=r"Prior\.product"):
        _prior("normal").split(x)


def test_flows_as_priors() -> None:
    flow = GaussianMixtureFlow([[0.0, 0.0]], 1.0)
    prior = Prior(flow)
    assert prior.field(3).path is not None
    conditional = TransportFlow(2, 1, network={"hidden": (8,)})
    with pytest.raises(UserError, match="bind one"):
        Prior(conditional)
    with pytest.raises(UserError, match=r"batch shape \(3,\).*bind one condition"):
        Prior(conditional(torch.zeros(3, 1)))
    bound = Prior(conditional(torch.zeros(1, 1)))
    x = bound.draw(5, Randomness(0, "f"))
    assert x.shape == (5, 2) and bound.log_prob(x).shape == (5,)
    assert bound.field(5)(torch.tensor(0.5), x).shape == (5, 2)
    stochastic = Prior(conditional.sampling(divergence=Hutchinson(1))(torch.zeros(1)))
    with pytest.raises(UserError, match="random error"):
        stochastic.log_prob(x)
    plain = TransportFlow(2, network={"hidden": (8,)})
    noisy = Prior(plain.sampling(stepper=SDEStep(4)))
    with pytest.raises(UserError, match=r"no density.*SDEStep"):
        noisy.log_prob(x)
    with pytest.raises(UserError, match="SDEStep"):
        Prior.product({"a": noisy}).log_prob(x)
    assert noisy.draw(3, Randomness(0, "s")).shape == (3, 2)  # draws need no density
    with pytest.raises(UserError, match="no velocity field"):
        _prior("normal").field(3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Prior(3), "the prior is a int"),
        (lambda: Prior(D.Normal(torch.zeros(2), 1.0)), r"Independent\(prior, 1\)"),
        (lambda: Prior(D.Poisson(_t(3.0)[0])), "discrete"),
        (lambda: Prior(_prior("normal").distribution, names=["a"]), "1 names"),
        (lambda: Prior.product({}), "a mapping from names"),
        (lambda: Prior.product({"a": D.Normal(torch.zeros(2), 1.0)}), "a: the prior has batch shape"),
        (lambda: Energy(3, 2), "the energy is a int"),
        (lambda: Energy(lambda x: x, 2, temperature=0.0), "temperature=0.0"),
        (lambda: Unconstrained(Energy(lambda x: x, 2, support=D.constraints.integer_interval(0, 3))), "no bijection"),
        (lambda: Unconstrained(Energy(lambda x: x, 2)).draw_prior(2, Randomness(0, "x")), "no prior to draw"),
    ],
)  # fmt: skip
def test_bad_input(build: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()


def test_single_precision_is_kept_and_stays_inside() -> None:
    prior = D.Independent(D.Uniform(torch.zeros(2, dtype=torch.float32), torch.full((2,), 3.0, dtype=torch.float32)), 1)
    target = Unconstrained(Problem(prior, torch.ones(2), Gaussian(0.5)))
    u = torch.linspace(-60, 60, 25, dtype=torch.float32).unsqueeze(1).expand(-1, 2)
    x = target.constrain(u)
    value = target.log_prob(u)
    assert target.dtype is torch.float32 and value.dtype is torch.float32 and not bool(value.isnan().any())
    assert bool(((x >= 0) & (x <= 3)).all()) and bool(value[8:17].isfinite().all())
    assert target.counted().calls.likelihood == 0 and target.values_test().passed


def test_densities_of_a_transport_count_its_velocity() -> None:
    flow = TransportFlow((2,), network=GaussianMixtureFlow([[0.0, 0.0]], 1.0).network).double()
    problem = Problem(flow, torch.zeros(2), Gaussian(1.0)).counted()
    x = torch.zeros(5, 2)
    value = problem.log_prob(x)
    once = problem.calls.velocity
    assert torch.allclose(problem.log_prior(x), flow().log_prob(x)) and torch.allclose(value, 2 * flow().log_prob(x), atol=1e-3)
    assert once >= 5 * 2 and problem.calls.velocity == 2 * once and problem.calls.velocity_gradient == 0
    problem.value_and_gradient(x)
    assert problem.calls.velocity_gradient == once
