"""The alpha = 2 divergence: p^2 / q by annealing, the buffer, and all modes of many wells."""

from __future__ import annotations

import pytest
import torch

from sciflow.flows import NeuralSplineFlow
from sciflow.posterior import Energy
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.samplers import Transition
from sciflow.posterior.variational import FAB, VariationalPosterior, fit_energy
from sciflow.training import Batch

from .test_variational import affine, many_well_figures, spline


def bound(target, rows, **options):
    objective = FAB(**options)
    objective.bind(target, rows, 0)
    return objective


def test_annealed_draws_are_those_of_p_squared_over_q():
    """p = N(0, 0.8^2), q = N(0, 1): p^2 / q is N(0, 1 / (2 / 0.64 - 1)); 5 errors of 4000 weighted draws."""
    target = Energy(lambda x: 0.5 * x.square().sum(1) / 0.64, 2, dtype=torch.float64)
    flow = NeuralSplineFlow(2, transforms=2, hidden=(8,)).double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.zero_()  # the identity
    objective = bound(target, 500, least=8)
    objective(flow, Batch(torch.zeros(500, 1)))
    count = int(objective.fills)
    assert count == 4000
    share = objective.log_weight[:count].softmax(0)
    variance = share @ objective.x[:count].square()
    truth = 1 / (2 / 0.64 - 1)
    assert float((variance - truth).abs().max()) < 5 * truth * (2 * float(share.square().sum())) ** 0.5


def test_buffer_follows_the_flow():
    """Weights in the buffer stay those of p^2 / q for the q of now, row by row, as far as rows were replayed."""
    target, flow = ManyWell(2), spline(2)
    objective = bound(target, 64, temperatures=2, capacity=4)
    objective(flow, Batch(torch.zeros(64, 1)))
    before = objective.log_weight.clone() + objective.log_q.double()
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    for _ in range(20):
        loss = objective(flow, Batch(torch.zeros(64, 1)))
    assert loss.shape == (64,)
    assert int(objective.fills) == 4 * 64 + 2 * 64 and int(objective.drawn) == int(objective.fills)
    replaced = torch.arange(4 * 64) < 2 * 64
    torch.testing.assert_close((objective.log_weight + objective.log_q.double())[~replaced], before[~replaced])


def test_same_seed_same_flow():
    target = ManyWell(2)
    flows = [affine(2), affine(2)]
    for flow in flows:
        fit_energy(flow, target, FAB(temperatures=2), steps=10, batch=32, seed=4, progress=False)
    for one, other in zip(*(flow.parameters() for flow in flows), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("features", "steps", "batch"),
    [(4, 150, 128), pytest.param(8, 600, 128, marks=pytest.mark.slow), pytest.param(16, 1500, 256, marks=pytest.mark.slow)],
)
def test_many_wells(features, steps, batch):
    """Masses of all 2^(D/2) modes and log Z against quadrature; 4 standard errors: false alarms 1e-4."""
    target = ManyWell(features)
    objective = FAB(temperatures=3, transition=Transition(moves=1, leapfrog=4))
    explore = {4: 512, 8: 1000, 16: 2000}[features]
    method = VariationalPosterior(spline(features), objective=objective, steps=steps, batch=batch, learning_rate=5e-3,
                                  explore=explore)  # fmt: skip
    found = method(target, 2000 if features == 4 else 10_000, seed=1, progress=False)
    distance, error = many_well_figures(target, found)
    assert distance < {4: 0.04, 8: 0.05, 16: 0.15}[features]
    assert abs(error) < 4
    assert found.certificate.verdict in ("passed", "warned"), found.certificate
