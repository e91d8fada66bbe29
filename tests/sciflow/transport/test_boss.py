"""Step times fitted to a trained flow."""

from __future__ import annotations

import itertools

import pytest
import torch

from sciflow.errors import UserError
from sciflow.transport.flow import TransportFlow
from sciflow.transport.reflow import reflow_pairs
from sciflow.transport.steppers.bespoke import bellman_steps
from sciflow.transport.steppers.fixed import FixedStep

from .analytic import GaussianMixtureVelocity


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _flow() -> TransportFlow:
    # narrow components: the velocity changes most on the way's second half
    return TransportFlow(2, network=GaussianMixtureVelocity([[1.5, 0.0], [-1.5, 0.5]], [0.2, 0.3])).double()


def _error(flow: TransportFlow, stepper: FixedStep) -> float:
    """Root mean square distance of the ends from those of the exact trajectories, on noise the steps were not fitted to."""
    z = torch.randn(1000, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(11))
    fine = flow.sampling(stepper=FixedStep(40, method="rk4")).solve(z, None, None, 0.0, 1.0, density=False).x
    found = flow.sampling(stepper=stepper).solve(z, None, None, 0.0, 1.0, density=False).x
    return float((found - fine).square().mean().sqrt())


@pytest.mark.parametrize(("steps", "method"), [(3, "euler"), (6, "euler"), (3, "midpoint")])
def test_beats_equal_steps_at_equal_evaluations(steps: int, method: str) -> None:
    flow = _flow()
    fitted = bellman_steps(flow, steps, method=method, fine=20, rows=128)
    assert len(fitted.times) == steps + 1 and fitted.method == method
    with torch.no_grad():
        errors = [_error(flow, stepper) for stepper in (fitted, FixedStep(steps, method=method))]
    assert errors[0] < 0.97 * errors[1]


def test_is_the_cheapest_way_of_all() -> None:
    """Against enumeration of all ways over the grid, with costs from Runge-Kutta by hand."""
    flow, fine = _flow(), 6
    found = bellman_steps(flow, 3, fine=fine, rows=64, refine=False, seed=4)
    x = reflow_pairs(flow, 64, stepper=FixedStep(1), seed=4).source
    field, points = flow.field(), []
    with torch.no_grad():
        for k in range(fine + 1):
            grid = FixedStep(2 * max(k, 1), method="rk4")
            points.append(x if k == 0 else grid.solve(field, x, 0.0, k / fine).x)

        def cost(i: int, j: int) -> float:
            step = points[i] + (j - i) / fine * field(torch.tensor(i / fine).double(), points[i])
            return float((step - points[j]).square().mean())

        ways = [(0, *inner, fine) for inner in itertools.combinations(range(1, fine), 2)]
        best = min(ways, key=lambda way: sum(cost(a, b) for a, b in itertools.pairwise(way)))
    assert found.times == [k / fine for k in best]


def test_conditions_and_refusals() -> None:
    flow = TransportFlow(2, {"c": 1}, network={"hidden": (8,)})
    times = bellman_steps(flow, 2, {"c": torch.randn(3, 1)}, rows=10, fine=4).times
    assert times[0] == 0 and times[-1] == 1 and len(times) == 3
    assert bellman_steps(flow, 1, {"c": torch.randn(3, 1)}, rows=10, fine=4).times == [0, 1]
    with pytest.raises(UserError, match="at least as many intervals"):
        bellman_steps(flow, 5, {"c": torch.randn(3, 1)}, fine=4)
    with pytest.raises(ValueError, match="condition"):
        bellman_steps(flow, 2)
