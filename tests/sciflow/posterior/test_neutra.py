"""Chains in the noise of flows: exact for any flow, stuck in modes without tempering."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Energy, Problem
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.samplers.latent import LatentHamiltonian
from sciflow.posterior.samplers.neutra import NeuTra
from sciflow.posterior.samplers.noise_coordinates import Noise
from sciflow.posterior.samplers.tempered import Tempered
from sciflow.transport.steppers import FixedStep

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


def spline(features, seed=0, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return NeuralSplineFlow(features, transforms=2, bins=4, hidden=(16,)).to(dtype)


def checked(sampler, operator, draws):
    exact = gaussian_problem(operator)
    if isinstance(sampler, LatentHamiltonian) or (isinstance(sampler, Tempered) and sampler.base is None):
        prior = exact.prior.sampling(stepper=FixedStep(4, method="rk4"))
        exact = LinearGaussian(prior, exact.matrix, exact.sigma, exact.observation)
    found = sampler(exact.problem, draws)
    return moment_p_value(moment_values(found.x, exact.posterior.mean(), exact.posterior.covariance())), found


@pytest.mark.parametrize("operator", OPERATORS)
def test_moments_of_neutra(operator):
    """Through a spline flow that knows nothing of the target; joint test of moments, false alarm 1 % per case."""
    p, found = checked(NeuTra(spline(10), chains=128, warmup=60, mass="dense"), operator, 30)
    assert p > 0.01
    exact = gaussian_problem(operator)
    assert torch.allclose(found.log_prob.flatten(), exact.problem.log_prob(found.rows), atol=1e-6)


@pytest.mark.parametrize("operator", [OPERATORS[1], *(pytest.param(name, marks=pytest.mark.slow) for name in OPERATORS[::2])])
def test_moments_of_latent_chains(operator):
    """In the noise of the prior's transport; false alarm 1 % per case."""
    p, found = checked(LatentHamiltonian(chains=110, warmup=50), operator, 25)
    assert p > 0.01
    exact = gaussian_problem(operator)
    expected = exact.problem.log_likelihood(found.rows)
    assert torch.allclose(found.log_likelihood.flatten(), expected, atol=1e-6)
    assert found.calls.velocity >= 16 * found.calls.likelihood > 0
    assert found.calls.velocity_gradient > 0


@pytest.mark.slow
@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("base", ["prior", "spline"])
def test_moments_of_tempered_noise(operator, base):
    """Replica exchange in noise; false alarm 1 % per case."""
    sampler = Tempered(None if base == "prior" else spline(10), noise=True, chains=110, warmup=80, rungs=4)
    assert checked(sampler, operator, 40)[0] > 0.01


def ten_modes(ambiguous):
    """Ten modes in eight dimensions seen through a 4 x 8 matrix with noise 0.1; four of them look alike, or none does."""
    generator = torch.Generator().manual_seed(0)
    means = 2 * torch.randn(10, 8, generator=generator, dtype=torch.float64)
    matrix = torch.randn(4, 8, generator=generator, dtype=torch.float64) / 8**0.5
    seen = matrix @ means[0]
    if ambiguous:
        for k in (1, 2, 3):
            shift = seen + 0.1 * torch.randn(4, generator=generator, dtype=torch.float64) - matrix @ means[k]
            means[k] += torch.linalg.pinv(matrix) @ shift
    prior = GaussianMixtureFlow(means, 0.09).sampling(stepper=FixedStep(10, method="rk4"))
    return LinearGaussian(prior, matrix, 0.1, seen + 0.05)


def mode_error(exact, found):
    """Total variation between mode masses of draws and their closed form, and over chains of the first mode its error."""
    masses = exact.posterior.responsibilities(found.rows).mean(0)
    return float((masses - exact.posterior.network.log_weights.exp()).abs().sum()) / 2


def test_ten_modes_in_data_space():
    """Mode masses within 0.08 in total variation (0.03 expected from the effective size)."""
    exact = ten_modes(True)
    found = Tempered(chains=32, warmup=100)(exact.problem, 150)
    assert mode_error(exact, found) < 0.08
    assert found.certificate.verdict != "failed"
    assert abs(found.evidence.log_value - exact.log_evidence) < 4 * found.evidence.error


@pytest.mark.slow
@pytest.mark.parametrize("ambiguous", [False, True])
def test_ten_modes_in_noise(ambiguous):
    """In the noise of the prior with tempering: masses within 0.05. Without, R-hat fails where there are several."""
    exact = ten_modes(ambiguous)
    found = Tempered(noise=True, chains=24, warmup=100)(exact.problem, 150)
    error = mode_error(exact, found)
    assert error < 0.05, found
    assert found.certificate.verdict != "failed", found
    if ambiguous:
        stuck = LatentHamiltonian(chains=16, warmup=40)(exact.problem, 20)
        assert stuck.certificate.verdict == "failed"


def test_noise_density_and_inverse():
    """log p~(u) against the change of variables by autograd; F and its inverse."""
    flow = spline(3)
    target = Energy(lambda x: (x.pow(4) / 4).sum(-1), 3, dtype=torch.float64)
    space = Noise(target, flow)
    u = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x, ladj = space.constrain_and_ladj(u)
    for k in range(5):
        jacobian = torch.autograd.functional.jacobian(lambda z: space.constrain(z[None])[0], u[k])
        assert float((torch.linalg.slogdet(jacobian)[1] - ladj[k]).detach()) == pytest.approx(0, abs=1e-8)
    assert torch.allclose(space.log_prob(u), target.log_prob(x) + ladj)
    assert torch.allclose(space.unconstrain(x), u, atol=1e-6)


def test_bounded_target_in_noise():
    """Beta(3, 6) through the unconstrained coordinates of a flow; mean within 6 standard errors over chains."""
    unit = torch.distributions.Uniform(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64))
    problem = Problem(torch.distributions.Independent(unit, 1),
                      likelihood=lambda x: (2 * x.log() + 5 * (-x).log1p()).sum(-1))  # fmt: skip
    found = NeuTra(spline(2), chains=16, warmup=60)(problem, 60)
    assert bool(((found.x > 0) & (found.x < 1)).all())
    assert bool(((found.mean() - 1 / 3).abs() < 6 * found.x.mean(1).std(0) / 4).all())
    assert torch.allclose(found.log_prob.flatten(), problem.log_prob(found.rows), atol=1e-6)


def test_a_single_precision_flow_is_good_enough():
    found = NeuTra(spline(10, dtype=torch.float32), chains=8, warmup=30)(gaussian_problem("dense").problem, 16)
    assert found.x.dtype == torch.float64 and found.statistics["acceptance"] > 0.6


def test_what_has_no_noise_is_refused():
    normal = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    problem = Problem(normal, likelihood=lambda x: -x.square().sum(-1))
    with pytest.raises(UserError, match="no sciflow flow"):
        LatentHamiltonian()(problem, 10)
    with pytest.raises(UserError, match="no prior whose noise"):
        LatentHamiltonian()(Energy(lambda x: x.square().sum(-1), 2), 10)
    with pytest.raises(UserError, match="event shape"):
        NeuTra(spline(3))(problem, 10)
