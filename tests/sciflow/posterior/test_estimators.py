"""Guided estimators: each right where its docstring says so, and wrong where the bias certificate must see it."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.noise import normal
from sciflow.posterior import Energy, Estimate, Problem
from sciflow.posterior.bias import Oracle, bias_certificate, closed_form_cases
from sciflow.posterior.estimators import DPS, OTODE, DFlow, FlowChef, FlowDPS, FlowLPS, FlowPriors, PnPFlow, PseudoInverse
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.operators import Dense
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.transport.steppers import FixedStep

FEATURES = 6
UNIT = GaussianMixtureFlow(torch.zeros(1, FEATURES), 1.0)
DATA = normal(0, "data", 0, FEATURES)
QUICK = [OTODE(20), DPS(), FlowChef(), FlowDPS(), FlowLPS(), FlowPriors(10), PnPFlow(10), DFlow(1, inner=3)]


def masked(measured: int, sigma: float) -> LinearGaussian:
    return LinearGaussian(UNIT, torch.eye(FEATURES)[:measured], sigma, DATA[:measured])


def test_pseudo_inverse_guidance_is_the_conditional_velocity_of_a_normal_prior():
    exact = LinearGaussian(UNIT, normal(0, "matrix", torch.arange(3), FEATURES), 0.3, DATA[:3])
    x, t = normal(1, "x", torch.arange(40), FEATURES), torch.linspace(0.01, 0.99, 40, dtype=torch.float64)
    field = UNIT.field()
    guided = PseudoInverse(Dense(exact.matrix), exact.observation, 0.3)(field)
    torch.testing.assert_close(guided(t, x), exact.posterior.field()(t, x), rtol=1e-9, atol=1e-9)


def test_pseudo_inverse_guidance_of_strength_0_is_the_identity():
    field = UNIT.field()
    assert PseudoInverse(Dense(torch.eye(FEATURES)), DATA, 0.3, strength=0.0)(field) is field


def test_ot_ode_from_noise_is_exact_for_a_normal_prior():
    """Mean and covariance of the linear map that it is, from its draws: no Monte Carlo error in the comparison of maps."""
    exact = masked(3, 0.3)
    found = OTODE(100)(exact.problem, 4000, seed=1)
    # 4000 draws: standard errors 0.016 sd of means and 0.022 of variances; 5 sigma each, false alarms below 1e-5
    deviation = exact.posterior.covariance().diagonal().sqrt()
    assert float(((found.mean() - exact.posterior.mean()) / deviation).abs().max()) < 0.08
    assert float((found.rows.var(0) / deviation**2 - 1).abs().max()) < 0.12


def test_dps_is_exact_for_a_linear_log_likelihood_and_a_normal_prior():
    slope = 0.7 * DATA
    problem = Problem(UNIT, None, lambda x: x @ slope)
    found = DPS(FixedStep(200))(problem, 4000, seed=1)  # the posterior is N(slope, 1); bounds as above
    assert float((found.mean() - slope).abs().max()) < 0.08
    assert float((found.rows.var(0) - 1).abs().max()) < 0.12


@pytest.mark.parametrize(
    ("method", "deviation"),
    [(FlowChef(), 1e-6), (FlowLPS(), 0.02), (FlowPriors(200, iterations=8), 0.1), (DFlow(5), 0.01), (OTODE(100), 0.1)],
    ids=repr,
)
def test_vanishing_noise_gives_the_data(method, deviation):
    found = method(masked(3, 0.01).problem, 200, seed=0)
    assert float((found.rows[:, :3] - DATA[:3]).abs().max()) < deviation


def test_flow_dps_tends_to_the_data_with_the_number_of_steps():
    errors = [float((FlowDPS(steps)(masked(3, 0.01).problem, 200).rows[:, :3] - DATA[:3]).abs().mean()) for steps in (28, 1000)]
    assert errors[1] < 0.5 * errors[0]


def test_pnp_flow_of_no_data_has_the_mean_of_the_prior():
    exact = LinearGaussian(UNIT, torch.zeros(2, FEATURES), 1.0, torch.zeros(2))
    found = PnPFlow(50)(exact.problem, 2000, seed=0)  # sd below 0.32 of 2000 draws: 0.05 is 7 sigma
    assert float(found.mean().abs().max()) < 0.05


def test_d_flow_finds_the_mode():
    exact = masked(3, 0.5)
    found = DFlow(5, steps=20)(exact.problem, 10, seed=0)
    torch.testing.assert_close(found.rows, exact.posterior.mean().expand(10, -1), atol=2e-2, rtol=0)


@pytest.mark.parametrize("method", QUICK, ids=lambda method: type(method).__name__)
class TestContract:
    def test_an_estimate_says_that_it_is_one(self, method):
        found = method(masked(3, 0.5).problem, 8)
        assert type(found) is Estimate and found.group == "estimate"
        assert "not the posterior's" in repr(found) and found.certificate.verdict == "failed"
        assert type(method).bias in repr(found.certificate.tests[0]) and type(method).right

    def test_counts_and_seeds(self, method):
        problem = masked(3, 0.5).problem
        one, two, other = method(problem, 8, seed=1), method(problem, 8, seed=1), method(problem, 8, seed=2)
        assert torch.equal(one.x, two.x) and not torch.equal(one.x, other.x)
        assert one.calls.velocity > 0 and problem.calls.velocity == 0
        assert one.x.shape == (1, 8, FEATURES) and one.x.dtype == torch.float64

    def test_an_energy_is_refused(self, method):
        with pytest.raises(UserError, match="needs a Problem"):
            method(Energy(lambda x: x.square().sum(-1), 2), 8)


# rows of one chunk share the line search of D-Flow and the first step of DPS
@pytest.mark.parametrize("method", [entry for entry in QUICK if not isinstance(entry, (DFlow, DPS))], ids=repr)
def test_chunks_do_not_matter(method):
    problem = masked(3, 0.5).problem
    other = type(method)(**{**method.recorded_arguments, "chunk": 3})
    torch.testing.assert_close(other(problem, 8).x, method(problem, 8).x, rtol=1e-6, atol=1e-6)


def test_priors_without_a_velocity_are_refused():
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    with pytest.raises(UserError, match="no velocity field"):
        OTODE()(Problem(prior, torch.zeros(2), Gaussian(1.0)), 8)


class TestBias:
    CASES = closed_form_cases(features=(4,))

    def test_the_oracle_passes(self):
        certificate = bias_certificate(Oracle(self.CASES), draws=1000, cases=self.CASES, classify=False)
        assert certificate.verdict == "passed", certificate

    @pytest.mark.parametrize("method", [PnPFlow(50), FlowChef(), FlowDPS(), FlowLPS(), FlowPriors(50)], ids=repr)
    def test_estimators_fail_for_normal_priors_too(self, method):
        certificate = bias_certificate(method, draws=500, cases=self.CASES[:3], classify=False)
        assert certificate.verdict == "failed", certificate

    def test_ot_ode_passes_normal_priors_and_fails_mixtures(self):
        normals = bias_certificate(OTODE(), draws=1000, cases=self.CASES[:3], classify=False)
        mixtures = bias_certificate(OTODE(), draws=1000, cases=closed_form_cases(features=(8,))[3:], classify=False)
        assert normals.verdict == "passed" and mixtures.verdict == "failed", (normals, mixtures)

    def test_the_adjoint_start_fails_where_the_noise_start_passes(self):
        certificate = bias_certificate(
            OTODE(start="adjoint"), draws=1000, cases=closed_form_cases(features=(8,))[:3], classify=False
        )
        assert certificate.verdict == "failed", certificate

    @pytest.mark.parametrize("power", [0.9, 1.1])
    def test_a_wrong_width_of_ten_percent_is_seen(self, power):
        class Wide(Oracle):
            def run(self, target, draws, randomness, *, progress):
                found = super().run(target, draws, randomness, progress=progress)
                centre = found.x.mean((0, 1))
                return type(found)(centre + power * (found.x - centre))

        certificate = bias_certificate(Wide(self.CASES), draws=4000, cases=self.CASES[:3], classify=False)
        assert certificate.verdict == "failed", certificate

    def test_few_effective_draws_do_not_pass(self):
        """Exact draws of which half a dozen have nearly all the weight: every other threshold has grown past their errors."""

        class Heavy(Oracle):
            def run(self, target, draws, randomness, *, progress):
                found = super().run(target, draws, randomness, progress=progress)
                weight = torch.full(found.x.shape[:2], -12.0, dtype=torch.float64)
                weight[0, :20] = 0.0
                return type(found)(found.x, weight)

        certificate = bias_certificate(Heavy(self.CASES), draws=1000, cases=self.CASES[:3], classify=False)
        failed = [test.name for test in certificate.tests if not test.passed]
        assert certificate.verdict == "failed"
        assert failed == [f"{case.name}: effective draws" for case in self.CASES[:3]]
        assert certificate[failed[0]].value == pytest.approx(20, abs=1)
        with pytest.raises(UserError, match="fewer than 200 draws"):
            bias_certificate(Oracle(self.CASES), draws=199, cases=self.CASES)

    @pytest.mark.slow
    def test_false_alarms_of_exact_draws(self):
        """Each item of exact draws fails once in a thousand: of 30 certificates with 22 items each more than four failures
        of items come up in one test of 2000."""
        failures = 0
        for seed in range(30):
            certificate = bias_certificate(Oracle(self.CASES), draws=200, cases=self.CASES, classify=False, seed=seed)
            failures += sum(not test.passed for test in certificate.tests)
        assert failures <= 4

    def test_a_method_that_refuses_a_case_fails_it(self):
        prior_free = bias_certificate(Oracle([]), draws=200, cases=self.CASES[:1], classify=False)
        assert prior_free.verdict == "failed" and "does not know" in prior_free.tests[0].description
