"""Plain chains against closed forms, and certificates that see what acceptance does not."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Energy, Problem
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian, ManyWell
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.adaptation import DualAveraging, windows
from sciflow.posterior.samplers.buffered import Buffered
from sciflow.posterior.samplers.equal_calls import plain_chain
from sciflow.posterior.samplers.hamiltonian import Hamiltonian
from sciflow.posterior.samplers.ladder import spaced
from sciflow.posterior.samplers.langevin import Langevin
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.metropolis import Metropolis
from sciflow.posterior.samplers.tempered import Tempered
from sciflow.posterior.samplers.whitening import Whitened, pooled_root

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values

PLAIN = {
    "walk": (Metropolis(chains=128, warmup=500), 60),
    "langevin": (Langevin(chains=128, warmup=250), 60),
    "hamiltonian": (Hamiltonian(chains=128, warmup=120), 40),
}


def moments(sampler, operator, draws, seed=0):
    """p-value of the joint test of mean and covariance over chains."""
    exact = gaussian_problem(operator)
    found = sampler(exact.problem, draws, seed=seed)
    values = moment_values(found.x, exact.posterior.mean(), exact.posterior.covariance())
    expected = exact.problem.log_prob(found.rows).reshape(found.log_prob.shape)
    assert torch.allclose(found.log_prob, expected, atol=1e-6)
    return moment_p_value(values)


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize("kind", PLAIN)
def test_moments_of_plain_chains(kind, operator):
    """Joint test of mean and covariance in ten dimensions; false alarm 1 % per case."""
    sampler, draws = PLAIN[kind]
    assert moments(sampler, operator, draws) > 0.01


@pytest.mark.parametrize("operator", OPERATORS)
def test_moments_of_tempered_chains(operator):
    """The same for replica exchange; false alarm 1 % per case."""
    assert moments(Tempered(chains=128, warmup=80, rungs=4), operator, 40) > 0.01


def two_modes(distance=6.0):
    prior = GaussianMixtureFlow([[-distance, 0.0], [distance, 0.0]], 1.0, [0.3, 0.7])
    return LinearGaussian(prior, [[0.0, 1.0]], 0.5, [0.4])


@pytest.mark.parametrize("sampler", [Langevin(chains=16, warmup=120), Hamiltonian(chains=16, warmup=80)])
def test_stuck_chains_accept_and_fail(sampler):
    """Two modes 12 sd apart: acceptance is as wanted, R-hat fails the certificate."""
    exact = two_modes()
    found = sampler(exact.problem, 60)
    assert found.statistics["acceptance"] > 0.3
    assert found.certificate.verdict == "failed"
    assert any("R-hat" in reason for reason in found.certificate.reasons)


def test_tempering_weighs_the_modes():
    """Masses 0.3 and 0.7 within 5 standard errors as the certificate states them (false alarm 1e-6); log Z within 5 errors."""
    exact = two_modes()
    found = Tempered(chains=32, warmup=80)(exact.problem, 150)
    right = float((found.rows[:, 0] > 0).double().mean())
    per_chain = (found.x[..., 0] > 0).double().mean(1)
    assert abs(right - 0.7) < 5 * float(per_chain.std()) / 32**0.5
    assert abs(right - 0.7) < 0.1
    assert found.certificate.verdict != "failed"
    assert abs(found.evidence.log_value - exact.log_evidence) < 5 * found.evidence.error
    assert found.statistics["round_trips"] > 5


def test_tempering_many_well():
    """Four modes in four dimensions, total variation below 0.06 (0.02 expected from the effective size) and log Z."""
    target = ManyWell(4)
    base = torch.distributions.MultivariateNormal(torch.zeros(4, dtype=torch.float64), 4 * torch.eye(4, dtype=torch.float64))
    found = Tempered(base, chains=48, warmup=80)(target, 150)
    masses = torch.bincount(target.mode(found.rows), minlength=4) / len(found.rows)
    assert float((masses - target.mode_masses).abs().sum()) / 2 < 0.06
    assert abs(found.evidence.log_value - target.log_evidence) < 5 * found.evidence.error


def test_bounded_parameters():
    """x^2 (1 - x)^5 on the unit interval is Beta(3, 6); no draw is outside; false alarm of each mean about 1e-5."""
    prior = torch.distributions.Independent(
        torch.distributions.Uniform(torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)), 1
    )
    problem = Problem(prior, likelihood=lambda x: (2 * x.log() + 5 * (-x).log1p()).sum(-1))
    beta = torch.distributions.Beta(torch.tensor(3.0), torch.tensor(6.0))
    for sampler in (Hamiltonian(warmup=100, chains=32), Metropolis(chains=32, warmup=300)):
        found = sampler(problem, 120)
        assert bool(((found.x > 0) & (found.x < 1)).all())
        error = found.x.mean(1).std(0) / 32**0.5
        assert bool(((found.mean() - beta.mean).abs() < 6 * error).all())
        assert bool((found.std() / beta.stddev.double() - 1).abs().max() < 0.1)
        assert torch.allclose(found.log_prob.flatten(), problem.log_prob(found.rows), atol=1e-8)


def test_same_seed_same_draws_and_calls_are_counted():
    seen = 0

    def energy(x):
        nonlocal seen
        seen += len(x)
        return 0.5 * x.square().sum(-1)

    target = Energy(energy, 3, dtype=torch.float64)
    start = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    sampler = Hamiltonian(chains=4, warmup=50, start=start)
    first = sampler(target, 20)
    assert first.calls.likelihood == seen
    assert 0 < first.calls.gradient <= seen
    assert torch.equal(first.x, sampler(target, 20).x)
    assert not torch.equal(first.x, sampler(target, 20, seed=1).x)


def test_warm_up_finds_scales_and_step():
    """Scales 0.01 to 100 and a correlation: the frozen acceptance is near what was wanted."""
    scale = torch.tensor([0.01, 1.0, 100.0], dtype=torch.float64)
    covariance = torch.diag(scale) @ (0.8 + 0.2 * torch.eye(3, dtype=torch.float64)) @ torch.diag(scale)
    normal = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), covariance)
    target = Energy(lambda x: -normal.log_prob(x), 3, dtype=torch.float64)
    start = torch.distributions.MultivariateNormal(torch.zeros(3, dtype=torch.float64), torch.eye(3, dtype=torch.float64))
    for sampler, wanted in ((Hamiltonian(start=start, warmup=300), 0.8), (Metropolis(start=start, warmup=1000), 0.27)):
        found = sampler(target, 150)
        assert abs(found.statistics["acceptance"] - wanted) < 0.12
        assert bool(((found.std() / scale).log().abs() < 0.3).all())


def test_energy_cliffs_are_counted_as_divergent():
    target = Energy(lambda x: torch.where(x[:, 0] > 0, 0.5 * x.square().sum(-1), torch.inf), 2, dtype=torch.float64)
    found = Hamiltonian(chains=4, warmup=40, start=torch.ones(4, 2, dtype=torch.float64), leapfrog=10)(target, 60)
    assert found.statistics["divergent"] > 0.001
    assert bool((found.x[..., 0] > 0).all())
    assert "divergent moves" in " ".join(found.certificate.reasons)


def test_bad_starts_are_refused():
    target = Energy(lambda x: torch.where(x[:, 0] > 0, x.sum(-1), torch.inf), 2)
    with pytest.raises(UserError, match="no prior to start from"):
        Langevin()(target, 10)
    with pytest.raises(UserError, match="density is 0 at 2 of 4 starts"):
        Langevin(chains=4, start=torch.tensor([[1.0, 1.0], [-1.0, 1.0], [-1.0, 1.0], [1.0, 1.0]]))(target, 10)
    with pytest.raises(UserError, match="start has shape"):
        Langevin(chains=3, start=torch.ones(2, 2))(target, 10)
    with pytest.raises(UserError, match="unknown move"):
        Local("gibbs")
    with pytest.raises(UserError, match="unknown mass"):
        Hamiltonian(mass="heavy")


def test_plain_chain_takes_as_many_calls_as_it_was_given():
    target = gaussian_problem("mask").problem
    found = plain_chain(target, 10_000)
    assert 0.85 < found.calls.likelihood / 10_000 < 1.15
    with pytest.raises(UserError, match="give more calls or fewer chains"):
        plain_chain(target, 100)


def test_dual_averaging_reaches_the_wanted_acceptance():
    dual = DualAveraging(torch.tensor([5.0, 0.01], dtype=torch.float64), 0.7)
    for _ in range(400):
        dual.update((-dual.step).exp())  # acceptance exp(-h): wanted at h = 0.357
    assert torch.allclose(dual.final, torch.full((2,), 0.3567, dtype=torch.float64), rtol=0.1)


@pytest.mark.parametrize("moves", [0, 5, 20, 100, 1000])
def test_windows_end_before_the_warm_up(moves):
    found = windows(moves)
    assert found == sorted(set(found)) and all(0 < end <= moves for end in found)


def test_whitened_gradient_and_inverse():
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(50, 3, generator=generator, dtype=torch.float64) * torch.tensor([1.0, 3.0, 0.1])
    target = Energy(lambda x: x.pow(4).sum(-1), 3, dtype=torch.float64)
    for dense in (False, True):
        view = Whitened(target, *pooled_root(rows, dense))
        w = view.inward(rows)
        assert torch.allclose(view.outward(w), rows)
        point = w.clone().requires_grad_()
        (wanted,) = torch.autograd.grad(target.log_prob(view.outward(point)).sum(), point)
        assert torch.allclose(view.density(w)[1], wanted)
    assert float(view.density(w * torch.inf)[0].max()) == -torch.inf


def test_spacing_evens_rejections_out():
    betas = torch.tensor([0.0, 0.1, 0.5, 1.0])
    found = spaced(betas, torch.tensor([0.9, 0.09, 0.01]))
    assert float(found[0]) == 0 and float(found[-1]) == 1 and bool((found.diff() > 0).all())
    assert float(found[2]) < 0.1


def test_buffered_numbers_are_standard_and_independent():
    """Mean and lag-one correlation of 20,000 normals within 5 standard errors."""
    source = Buffered(Randomness(0, "test", dtype=torch.float64))
    z = torch.stack([source.normal(4, (5,)) for _ in range(1000)])
    assert abs(float(z.mean())) < 5 / 20_000**0.5
    assert abs(float((z[1:] * z[:-1]).mean())) < 5 / 20_000**0.5
    assert abs(float(z.var()) - 1) < 5 * (2 / 20_000) ** 0.5
