"""Flow-MCMC: valid after freezing, modes weighed right."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.samplers.adaptive_flow import AdaptiveFlow

from .moments import OPERATORS, gaussian_problem, moment_p_value, moment_values


@pytest.mark.parametrize("operator", OPERATORS)
def test_moments(operator):
    """A flow that is hardly trained, so that jumps are far from perfect; joint test of moments, false alarm 1 % per case."""
    exact = gaussian_problem(operator)
    flow = NeuralSplineFlow(10, transforms=2, bins=4, hidden=(16,))
    found = AdaptiveFlow(flow, chains=128, warmup=120, rounds=2, steps=15, moves=3, epochs=2, burn=30)(exact.problem, 40)
    assert moment_p_value(moment_values(found.x, exact.posterior.mean(), exact.posterior.covariance())) > 0.01
    assert torch.allclose(found.log_prob.flatten(), exact.problem.log_prob(found.rows), atol=1e-6)
    assert 0.05 < found.statistics["global_acceptance"] < 0.98


def wide(features):
    eye = torch.eye(features, dtype=torch.float64)
    return torch.distributions.MultivariateNormal(eye.new_zeros(features), 4 * eye)


def masses(target, found):
    return torch.bincount(target.mode(found.rows), minlength=2**target.wells) / len(found.rows)


def test_many_well():
    """Mode masses in four dimensions within 0.05 in total variation (0.02 expected)."""
    target = ManyWell(4)
    sampler = AdaptiveFlow(start=wide(4), chains=32, warmup=100, rounds=4, steps=40, epochs=8)
    found = sampler(target, 80)
    assert float((masses(target, found) - target.mode_masses).abs().sum()) / 2 < 0.05
    assert found.certificate.verdict != "failed"
    assert found.statistics["global_acceptance"] > 0.3


@pytest.mark.slow
@pytest.mark.parametrize(("features", "limit"), [(8, 0.05), (16, 0.12)])
def test_many_well_large(features, limit):
    """16 and 256 modes: mass on the right of each well, and the masses of all modes."""
    target = ManyWell(features)
    sampler = AdaptiveFlow(start=wide(features), chains=128, warmup=150, rounds=8, steps=60, epochs=12, keep=3)
    found = sampler(target, 200)
    right = (found.rows[:, ::2] > 0).double().mean(0)
    assert float((right - target.right_mass).abs().max()) < 0.03
    assert float((masses(target, found) - target.mode_masses).abs().sum()) / 2 < limit
    assert found.certificate.verdict != "failed"


def test_the_given_flow_is_left_alone_and_checked():
    flow = NeuralSplineFlow(4, transforms=2, hidden=(8,))
    before = [p.clone() for p in flow.parameters()]
    AdaptiveFlow(flow, start=wide(4), chains=8, warmup=20, rounds=2, steps=5, epochs=1)(ManyWell(4), 10)
    assert all(torch.equal(a, b) for a, b in zip(before, flow.parameters(), strict=True))
    with pytest.raises(UserError, match="event shape"):
        AdaptiveFlow(NeuralSplineFlow(3, transforms=2), start=wide(4), chains=4)(ManyWell(4), 10)
    with pytest.raises(UserError, match="without condition"):
        AdaptiveFlow(NeuralSplineFlow(4, 2, transforms=2))
