"""Annealed importance sampling and stochastic flows: unbiased evidence, moments, modes."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Independent, Normal, Uniform

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Energy, Problem
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.samplers import AnnealedImportance, StochasticFlow, Transition
from sciflow.posterior.weights import NoEffectiveDraws

from .moments import gaussian_problem, moment_p_value, moment_values

REPLICATES = 128


def double(value):
    return torch.as_tensor(value, dtype=torch.float64)


def flows(count, features, *, scale=0.02):
    """Untrained flows that do something: all weights moved at random."""
    found = []
    for number in range(count):
        with torch.random.fork_rng():
            torch.manual_seed(number)
            flow = NeuralSplineFlow(features, transforms=2, hidden=(16,), mixing="lu").double()
            for parameter in flow.parameters():
                parameter.data += scale * torch.randn_like(parameter)
        found.append(flow)
    return found


def unbiased(found, truth):
    """The mean of Z^ / Z over replicates is 1 within 3 standard errors: 0.3 % false alarms."""
    ratio = (double(found.evidence.replicates) - truth).exp()
    assert len(ratio) >= 100
    return abs(float(ratio.mean()) - 1) < 3 * float(ratio.std()) / len(ratio) ** 0.5


def check(found, exact):
    """Evidence and, in one test at level 1 %, mean and covariance."""
    assert unbiased(found, exact.log_evidence)
    assert abs(found.evidence.log_value - exact.log_evidence) < 3 * found.evidence.error
    x, weight = found.x.reshape(REPLICATES, -1, 10), found.log_weight.reshape(REPLICATES, -1)
    assert moment_p_value(moment_values(x, exact.posterior.mean(), exact.posterior.covariance(), weight)) > 0.01


@pytest.mark.parametrize("operator", ["dense", *(pytest.param(name, marks=pytest.mark.slow) for name in ("mask", "identity"))])
def test_annealed_importance_on_ten_gaussians(operator):
    exact = gaussian_problem(operator)
    found = AnnealedImportance(replicates=REPLICATES, share=0.9, pilot=200, further=1)(exact.problem, REPLICATES * 16, seed=1)
    check(found, exact)
    assert found.certificate["k-hat, limit"].passed and found.certificate["least acceptance"].passed


@pytest.mark.parametrize("kind", ["langevin", "walk"])
def test_other_transitions_are_unbiased_too(kind):
    exact = gaussian_problem("mask", 3)
    sampler = AnnealedImportance(replicates=REPLICATES, pilot=200, transition=Transition(kind, moves=3), further=1)
    assert unbiased(sampler(exact.problem, REPLICATES * 10, seed=2), exact.log_evidence)


@pytest.mark.parametrize("operator", ["mask", *(pytest.param(name, marks=pytest.mark.slow) for name in ("dense", "identity"))])
def test_stochastic_flow_on_ten_gaussians(operator):
    """Flows that nobody trained cost effective draws, not correctness."""
    exact = gaussian_problem(operator)
    betas = [(k / 15) ** 2 for k in range(1, 16)]
    sampler = StochasticFlow(flows(3, 10), betas, replicates=REPLICATES, pilot=200, further=1)
    check(sampler(exact.problem, REPLICATES * 20, seed=3), exact)


def test_annealing_is_a_stochastic_flow_without_flows():
    exact = gaussian_problem("mask", 2)
    annealed, stochastic = AnnealedImportance(betas=[0.1, 1.0]), StochasticFlow((), [0.1, 1.0])
    first, second = annealed(exact.problem, 100, seed=4), stochastic(exact.problem, 100, seed=4)
    # the seed is addressed by the name of the class: same law, other numbers
    assert first.x.shape == second.x.shape and first.statistics.keys() == second.statistics.keys()
    assert abs(first.evidence.log_value - second.evidence.log_value) < 1


def test_a_flow_that_maps_base_to_target_gives_constant_weights():
    """T with T(base) = target, moves at the target: w = Z for every path."""
    target = Energy(lambda x: 0.5 * (x - 3.0).square().sum(-1), 2, dtype=torch.float64)

    class Shift(NeuralSplineFlow):
        def to_data(self, z, context, mask):
            return z + 3.0, torch.zeros(len(z), dtype=z.dtype)

    base = Independent(Normal(double([0.0, 0.0]), double([1.0, 1.0])), 1)
    found = StochasticFlow([Shift(2).double()], [1.0], base=base, pilot=0)(target, 200)
    assert torch.allclose(found.log_weight, double(math.log(2 * math.pi)).expand(1, 200))
    assert found.effective_size == pytest.approx(200)


def many_well(features, sampler):
    """log Z within 3 standard errors, masses of all wells in one test at 1 %, none of the modes lost."""
    target = ManyWell(features)
    found = sampler(target)
    assert abs(found.evidence.log_value - target.log_evidence) < 3 * found.evidence.error
    rows, log_w = found.rows, found.log_weight.flatten()
    right = (rows[:, ::2] > 0).double() - target.right_mass
    weight = (log_w - log_w.logsumexp(0) + math.log(len(log_w))).exp()
    values = (weight[:, None] * right).reshape(REPLICATES, -1, features // 2).mean(1)
    assert moment_p_value(values) > 0.01
    masses = torch.zeros(2**target.wells, dtype=torch.float64).index_add_(0, target.mode(rows), found.weights)
    return 0.5 * float((masses - target.mode_masses).abs().sum())


def wide(features):
    return Independent(Normal(torch.zeros(features, dtype=torch.float64), 2 * torch.ones(features, dtype=torch.float64)), 1)


@pytest.mark.parametrize(
    "features, draws, limit", [(4, 20, 0.1), pytest.param(8, 60, 0.1, marks=pytest.mark.slow),
                               pytest.param(16, 120, 0.35, marks=pytest.mark.slow)],
)  # fmt: skip
def test_many_wells_by_annealing(features, draws, limit):
    sampler = AnnealedImportance(wide(features), replicates=REPLICATES, pilot=300, share=0.97, further=1)
    assert many_well(features, lambda target: sampler(target, REPLICATES * draws, seed=5)) < limit


def test_flows_too_far_from_the_bridge_fail_the_certificate():
    """Their paths have an evidence that is unbiased and useless: k-hat says so."""
    exact = gaussian_problem("mask")
    found = StochasticFlow(flows(3, 10, scale=0.1), [0.05, 0.3, 1.0], pilot=100)(exact.problem, 1000, seed=3)
    assert found.certificate["k-hat, limit"].outcome == "failed"


def test_bounded_priors_stay_within():
    """Uniform prior on a box: the evidence by one-dimensional integrals, 3 standard errors."""
    prior = Independent(Uniform(double([0.0, -1.0]), double([1.0, 1.0])), 1)
    problem = Problem(prior, double([0.9, 0.0]), Gaussian(0.3))
    found = AnnealedImportance()(problem, 2000, seed=6)
    assert bool(prior.support.check(found.rows).all())
    cdf = Normal(0.0, 1.0).cdf
    first, second = cdf(double(1 / 3)) - cdf(double(-3.0)), (cdf(double(10 / 3)) - cdf(double(-10 / 3))) / 2
    truth = math.log(float(first * second))
    assert abs(found.evidence.log_value - truth) < 3 * found.evidence.error + 1e-3
    assert torch.allclose(found.log_prob, problem.log_prob(found.rows)[None])


def test_refusals():
    nothing = Problem(wide(2), None, lambda x: torch.full((len(x),), -math.inf, dtype=x.dtype))
    with pytest.raises(NoEffectiveDraws, match="the target is 0 at all"):
        AnnealedImportance()(nothing, 100)
    with pytest.raises(NoEffectiveDraws, match="have weight 0") as caught:
        StochasticFlow(betas=[0.5, 1.0], pilot=0, transition=Transition("walk"))(nothing, 100)
    kept = caught.value.result
    assert kept.x.shape == (1, 100, 2) and kept.certificate.verdict == "failed" and kept.calls.likelihood > 0
    with pytest.raises(UserError, match="increase from above 0 to 1"):
        StochasticFlow(betas=[0.5, 0.4, 1.0])
    with pytest.raises(UserError, match="at least one beta for each flow"):
        StochasticFlow(flows(2, 2), [1.0])
    with pytest.raises(UserError, match="without condition"):
        StochasticFlow([NeuralSplineFlow(2, 3)], [1.0])
    with pytest.raises(UserError, match="unknown transition"):
        Transition("gibbs")
