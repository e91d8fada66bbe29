"""Annealed Langevin draws on closed forms, and what their certificate notices."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Problem
from sciflow.posterior.bias import bias_certificate, closed_form_cases
from sciflow.posterior.likelihoods import Gaussian, Student
from sciflow.posterior.operators import Dense, FourierMask, Function, ToComplex
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import AnnealedLangevin, UntilSettled
from sciflow.posterior.samplers.noisy_posterior import NoisyPosterior

FINE = AnnealedLangevin(levels=((0.4, 5), (0.15, 5), (0.05, 40)), states=0)


def normal_problem(sigma: float = 0.3) -> LinearGaussian:
    prior = GaussianMixtureFlow(torch.zeros(1, 3), 1.0)
    return LinearGaussian(prior, [[1.0, 1.0, 0.0]], sigma, [1.5])


def test_the_gradient_is_that_of_the_blurred_posterior() -> None:
    """P^-1 (m - x) against autograd of the closed form, for a mixture prior."""
    prior = GaussianMixtureFlow([[1.0, 0.0], [-1.0, 0.5]], 0.2)
    exact = LinearGaussian(prior, [[1.0, 0.5]], 0.4, [0.7])
    posterior, s = NoisyPosterior(exact.problem), 0.6
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    blurred = GaussianMixtureFlow([[1.0, 0.0], [-1.0, 0.5]], 0.2 + s**2)
    value = blurred().log_prob(x) - 0.5 * ((0.7 - x @ torch.tensor([1.0, 0.5], dtype=torch.float64)) / 0.4) ** 2
    (wanted,) = torch.autograd.grad(value.sum(), x)
    with torch.no_grad():
        gap = posterior.mean(posterior.denoised(x, s), s) - x
    a = torch.tensor([[1.0, 0.5]], dtype=torch.float64)
    precision = a.T @ a / 0.16 + torch.eye(2, dtype=torch.float64) / s**2
    torch.testing.assert_close(gap @ precision, wanted)


@pytest.mark.parametrize("operator", [Dense([[1.0, 2.0, 0.0], [0.0, 1.0, 1.0]]), FourierMask([True, True, False])], ids=repr)
def test_noise_has_the_covariance_of_the_solution(operator) -> None:
    """20,000 draws; entries of the covariance have standard errors below .012, 5 of them are allowed."""
    draws = operator.to(torch.float64).normal_noise(20_000, 0.5, Randomness(0, "test", dtype=torch.float64))
    wanted = torch.linalg.inv(operator.matrix().T @ operator.matrix() + 0.5 * torch.eye(3, dtype=torch.float64))
    torch.testing.assert_close(draws.T.cov(), wanted, atol=5 * 0.02, rtol=0)


def test_noise_of_complex_images() -> None:
    operator = (FourierMask(torch.tensor([True, False]), complex_domain=True) @ ToComplex(2)).to(torch.float64)
    draws = operator.normal_noise(20_000, 0.5, Randomness(0, "test", dtype=torch.float64)).flatten(1)
    wanted = torch.linalg.inv(operator.matrix().T @ operator.matrix() + 0.5 * torch.eye(4, dtype=torch.float64))
    torch.testing.assert_close(draws.T.cov(), wanted, atol=5 * 0.02, rtol=0)


@pytest.mark.parametrize("sigma", [0.05, 0.3, 1.0])
def test_mean_and_covariance_of_a_normal_posterior(sigma) -> None:
    """4,000 draws: five standard errors of means and covariances, plus the variance of the last level's noise."""
    exact = normal_problem(sigma)
    found = FINE(exact.problem, 4000, seed=1).rows
    scale = exact.posterior.covariance().diagonal().sqrt()
    assert bool(((found.mean(0) - exact.posterior.mean()).abs() < 5 * scale / 4000**0.5).all())
    wanted = exact.posterior.covariance()
    torch.testing.assert_close(found.T.cov(), wanted, atol=5 * (2 / 4000) ** 0.5 * float(wanted.max()) + 0.05**2, rtol=0)


@pytest.mark.slow
def test_the_bias_certificate_of_normal_cases_passes() -> None:
    """Items fail by chance once in a thousand (about 60 items); seeded."""
    cases = [case for case in closed_form_cases(features=(4, 8)) if not case.modes]
    found = bias_certificate(FINE, cases=cases, classify=False)
    assert found.verdict == "passed", found


@pytest.mark.slow
def test_masses_of_separate_modes_are_approximate() -> None:
    """What the docstring says: the bias certificate fails by the masses of modes, and the scope line says so."""
    case = next(case for case in closed_form_cases(features=(4,)) if case.modes)
    method = AnnealedLangevin(coarse=60, levels=((0.3, 10), (0.1, 20), (0.04, 40)), states=0)
    found = {test.name.removeprefix(f"{case.name}: "): test for test in bias_certificate(method, cases=[case]).tests}
    assert 0.05 < found["mode masses, total variation"].value < 0.4
    assert "masses of separate modes" in method(case.exact.problem, 4).certificate.scope


def test_draws_do_not_depend_on_chunks() -> None:
    problem = normal_problem().problem
    whole, pieces = (AnnealedLangevin(chunk=chunk, states=5)(problem, 7, seed=3) for chunk in (None, 2))
    torch.testing.assert_close(whole.x, pieces.x)
    torch.testing.assert_close(whole.traces["states"], pieces.traces["states"])


def test_residuals_notice_a_wrong_noise() -> None:
    """Data of noise 0.4 with a stated 0.2 fail; with 0.4 they pass (false alarms 1e-6, and of mixing 0 of 200 seeds)."""
    d, generator = 60, torch.Generator().manual_seed(0)
    matrix = torch.randn(200, d, generator=generator, dtype=torch.float64)
    y = matrix @ torch.randn(d, generator=generator, dtype=torch.float64)
    y = y + 0.4 * torch.randn(200, generator=generator, dtype=torch.float64)
    prior = GaussianMixtureFlow(torch.zeros(1, d), 1.0)
    for sigma, verdict in ((0.4, "passed"), (0.2, "failed"), (0.8, "failed")):
        found = AnnealedLangevin()(LinearGaussian(prior, matrix, sigma, y).problem, 50)
        assert found.certificate.verdict == verdict, found.certificate


def test_a_noise_that_may_be_stated_too_large_widens_the_lower_limit_alone() -> None:
    problem = normal_problem().problem
    limits = {}
    for settings in ({}, {"noise_error": 0.3}, {"noise_error": 0.3, "noise_excess": 0.55}):
        sampler = AnnealedLangevin(states=0, **settings)
        for one in (sampler, sampler.doubled()):
            limits[tuple(settings)] = one(problem, 4).certificate.tests[0].threshold
            low, high = limits[tuple(settings)]
            assert low == pytest.approx(limits[()][0] - settings.get("noise_excess", settings.get("noise_error", 0.0)))
            assert high == pytest.approx(limits[()][1] + settings.get("noise_error", 0.0))
    with pytest.raises(UserError, match="noise_excess"):
        AnnealedLangevin(noise_excess=1.0)


def test_chains_that_stand_still_are_noticed() -> None:
    """Moves of a hundredth: the chains are where they started from."""
    found = AnnealedLangevin(step=0.01)(normal_problem().problem, 10)
    assert found.certificate.verdict == "failed"


def test_without_states_the_certificate_is_incomplete() -> None:
    assert AnnealedLangevin(states=0)(normal_problem().problem, 10).certificate.verdict == "incomplete"


def test_refusals() -> None:
    exact = normal_problem()
    prior, y = exact.prior, torch.zeros(3, dtype=torch.float64)
    with pytest.raises(UserError, match="Gaussian noise of one sigma"):
        AnnealedLangevin()(Problem(prior, y, Student(3.0, 1.0)))
    with pytest.raises(UserError, match="not linear"):
        AnnealedLangevin()(Problem(prior, y, Gaussian(1.0), Function(torch.square, 3)))
    with pytest.raises(UserError, match="TransportFlow"):
        AnnealedLangevin()(Problem(torch.distributions.MultivariateNormal(torch.zeros(3), torch.eye(3)), y, Gaussian(1.0)))
    with pytest.raises(UserError, match="decrease"):
        AnnealedLangevin(levels=((0.1, 1), (0.2, 1)))
    with pytest.raises(UserError, match="at least 4 states"):
        AnnealedLangevin(states=2)
    with pytest.raises(UserError, match="step between 0 and 2"):
        AnnealedLangevin(step=2.5)


def test_moves_are_doubled_until_chains_agree() -> None:
    """R-hat of small steps is 2.1, 1.5, 1.1 with once, twice, four times the moves: the third attempt is returned."""
    problem = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0]).problem
    sampler = AnnealedLangevin(step=0.2, levels=((0.5, 4),))
    attempts = [sampler, sampler.doubled(), sampler.doubled().doubled()]
    assert attempts[2].levels == [(0.5, 16)] and attempts[2].thin == 4
    alone = [attempt(problem, 8, progress=False) for attempt in attempts]
    found = UntilSettled(sampler, 5)(problem, 8, progress=False)
    mixing = [{test.name: test for test in each.certificate.tests}["R-hat (95 % of features)"] for each in (*alone, found)]
    assert [test.outcome for test in mixing] == ["warned", "warned", "passed", "passed"]
    torch.testing.assert_close(found.x, alone[2].x, rtol=0, atol=0)
    assert found.statistics["doublings"] == 2 and found.calls == alone[0].calls + alone[1].calls + alone[2].calls
    short = UntilSettled(sampler, 1)(problem, 8, progress=False)
    assert short.certificate.verdict != "passed" and short.statistics["doublings"] == 1
    for bad in (AnnealedLangevin(states=0), object()):
        with pytest.raises(UserError, match="nothing says whether it has settled"):
            UntilSettled(bad)  # type: ignore[arg-type]
