"""The stochastic stepper against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

import sciflow
from sciflow import noise
from sciflow.errors import UserError
from sciflow.transport.divergence import Exact
from sciflow.transport.flow import TransportFlow
from sciflow.transport.guidance.rescheduled import Rescheduled
from sciflow.transport.heads import VelocityAndNoise
from sciflow.transport.paths import Linear, SchroedingerBridge, VariancePreserving
from sciflow.transport.steppers.endpoint import EndpointStep
from sciflow.transport.steppers.fixed import FixedStep
from sciflow.transport.steppers.sde import SDEStep

from .analytic_paths import AffineMixture, NoisyNormals

pytestmark = pytest.mark.usefixtures("float64")


def _normal(path, mean: float = 1.0, deviation: float = 0.5) -> TransportFlow:
    network = AffineMixture(path, ((mean,),), (deviation,), (1.0,))
    return TransportFlow(1, network=network, path=path)


def _moments(flow: TransportFlow, stepper: SDEStep, mean: float, deviation: float, end: float = 1.0) -> tuple[float, float]:
    """Exact mean and variance of a linear stepper's result: its response to the start and to each normal, one row each."""
    uniforms = stepper.uniforms((1,))
    one = torch.special.ndtr(torch.tensor(1.0)).item()
    uniform = torch.full((uniforms + 2, uniforms), 0.5)
    uniform[torch.arange(uniforms), torch.arange(uniforms)] = one
    start = torch.zeros(uniforms + 2, 1)
    start[-2] = 1.0
    x = stepper.solve(flow.field(), start, 0.0, end, uniform=uniform).x.squeeze(1)
    response = x[:-1] - x[-1]
    gain = response[-1]
    return float(x[-1] + gain * mean), float(response[:-1].square().sum() + (gain * deviation) ** 2)


@pytest.mark.parametrize("options", [{}, {"power": 2}, {"scale": 3.0}, {"corrector": 2, "corrector_step": 0.05}], ids=str)
@pytest.mark.parametrize("path", [Linear(), VariancePreserving()], ids=repr)
def test_moments_of_a_normal_are_right_to_first_order(path, options) -> None:
    flow, errors = _normal(path), []
    for steps in (50, 100, 200):
        mean, variance = _moments(flow, SDEStep(steps, **options), 0.0, 1.0)
        errors.append(max(abs(mean - 1.0), abs(variance - 0.25)))
    assert errors[0] < 0.2 and errors[2] < 0.02
    if "corrector" not in options:
        # halving the step halves the error
        assert 1.6 < errors[0] / errors[1] < 2.5 and 1.6 < errors[1] / errors[2] < 2.5


@pytest.mark.parametrize("end", [0.3, 0.7])
def test_moments_are_right_on_the_way(end) -> None:
    flow = _normal(Linear())
    mean, variance = _moments(flow, SDEStep(400), 0.0, 1.0, end)
    assert abs(mean - end) < 0.01
    assert abs(variance - (0.25 * end**2 + (1 - end) ** 2)) < 0.01


@pytest.mark.parametrize("scale", [0.5, 2.0])
def test_a_bridge_between_other_normals_has_its_marginals(scale) -> None:
    """A base that is no standard normal and a coupling that is not independent: the noise of the path gives the score."""
    path = SchroedingerBridge(0.8)
    network = NoisyNormals(path)
    flow = TransportFlow(1, network=network, path=path, head=VelocityAndNoise())
    (m0, m1), (s0, s1) = network.moments
    errors = []
    for steps in (100, 200):
        mean, variance = _moments(flow, SDEStep(steps, scale=scale), m0, s0)
        errors.append(max(abs(mean - m1), abs(variance - s1**2)))
    assert errors[1] < 0.03 and errors[1] < 0.8 * errors[0]


def _distance(draws: torch.Tensor, network: AffineMixture) -> float:
    """Kolmogorov-Smirnov distance of draws (n, 1) to the exact distribution function, times sqrt(n)."""
    ordered = network.cdf(draws.sort(0).values)
    n = len(ordered)
    steps = torch.arange(n + 1) / n
    return float(torch.maximum((ordered - steps[:-1]).abs(), (ordered - steps[1:]).abs()).max() * math.sqrt(n))


WAYS = {
    "ode": (FixedStep(100), []),
    "sde": (SDEStep(200), []),
    "strong": (SDEStep(400, scale=2.0), []),
    "fading": (SDEStep(200, power=2), []),
    "corrected": (SDEStep(100, corrector=1), []),
    "rescheduled": (SDEStep(200), [Rescheduled(VariancePreserving())]),
}


@pytest.mark.parametrize("way", WAYS)
def test_stochastic_and_deterministic_ways_have_the_same_marginals(way) -> None:
    """Kolmogorov-Smirnov against the exact mixture, n = 4000: sqrt(n) D > 2.23 has probability 1e-4 for exact draws."""
    stepper, guidance = WAYS[way]
    network = AffineMixture(sigmas=(0.3, 0.4), means=((2.0,), (-1.5,)))
    flow = TransportFlow(1, network=network, stepper=stepper, guidance=guidance)
    with torch.no_grad():
        draws = flow().sample((4000,))
    assert _distance(draws, network) < 2.23


def test_the_marginals_need_the_score() -> None:
    """The same test finds a process without the drift g^2 / 2 score: it can fail."""

    class Broken(SDEStep):
        def solve(self, field, x, start, end, *, divergence=None, uniform=None):
            field.velocity_and_noise = lambda t, x: (field(t, x), torch.zeros_like(x))
            return super().solve(field, x, start, end, uniform=uniform)

    network = AffineMixture(sigmas=(0.3, 0.4), means=((2.0,), (-1.5,)))
    flow = TransportFlow(1, network=network, stepper=Broken(100))
    with torch.no_grad():
        assert _distance(flow().sample((4000,)), network) > 4


def test_draws_by_counter_do_not_depend_on_chunks() -> None:
    stepper = SDEStep(5, corrector=2)
    flow = TransportFlow((2, 3), network={"hidden": (16,)}, stepper=stepper)
    assert stepper.uniforms((2, 3)) == (5 + 2 * 4) * 6
    assert flow.uniforms == 6 + 78
    uniform = noise.uniform(3, "test", torch.arange(14), flow.uniforms)
    with torch.no_grad():
        whole, log_prob = flow().from_uniform(uniform, density=False)
        parts = torch.cat([flow().from_uniform(part, density=False)[0] for part in uniform.split(3)])
        alone = flow().from_uniform(uniform[7], density=False)[0]
    assert log_prob is None
    torch.testing.assert_close(whole, parts)
    torch.testing.assert_close(whole[7], alone)
    assert (whole[0] != whole[1]).all()
    with pytest.raises(ValueError, match=r"\(2, 5\), expected \(2, 78\)"):
        stepper.solve(flow.field(), torch.zeros(2, 2, 3), 0.0, 1.0, uniform=torch.rand(2, 5))


@pytest.mark.parametrize("given", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_masks_dtypes_and_torchs_own_generator(dtype, given) -> None:
    flow = TransportFlow((3, 2), network={"hidden": (8,)}, stepper=SDEStep(4, corrector=1), maskable=True).to(dtype)
    mask = torch.ones(5, 3, 2, dtype=torch.bool)
    mask[:3, 2:] = False
    uniform = torch.rand(5, flow.uniforms)
    with torch.no_grad():
        x = flow(None, mask).from_uniform(uniform, density=False)[0] if given else flow(None, mask).sample()
    assert x.dtype == dtype and torch.isfinite(x).all()
    assert (x[~mask] == 0).all() and (x[mask] != 0).all()


def test_scale_zero_is_eulers_method() -> None:
    flow, z = _normal(Linear()), torch.randn(4, 1)
    found = SDEStep(7, scale=0.0).solve(flow.field(), z, 0.0, 1.0)
    wanted = FixedStep(7, method="euler").solve(flow.field(), z, 0.0, 1.0)
    torch.testing.assert_close(found.x, wanted.x)
    assert found.evaluations == 7 and found.log_det is None


@pytest.mark.parametrize("stepper", [SDEStep(3), EndpointStep(3)], ids=repr)
def test_there_is_no_density_and_no_way_back(stepper, tmp_path) -> None:
    flow = TransportFlow(2, network={"hidden": (4,)}, stepper=stepper)
    assert flow().sample((3,)).shape == (3, 2)
    assert not flow().has_density
    with pytest.raises(UserError, match="no density"):
        flow().log_prob(torch.zeros(2))
    with pytest.raises(UserError, match="no density"):
        flow().rsample_and_log_prob()
    with pytest.raises(UserError, match="log-density"):
        stepper.solve(flow.field(), torch.zeros(1, 2), 0.0, 1.0, divergence=Exact())
    with pytest.raises(UserError, match=r"forward in time only, not from 1\.0 to 0\.0"):
        stepper.solve(flow.field(), torch.zeros(1, 2), 1.0, 0.0)
    sciflow.save(flow, tmp_path / "flow")
    assert repr(sciflow.load(tmp_path / "flow").stepper) == repr(stepper)
    x = torch.randn(3, 2, requires_grad=True)
    (gradient,) = torch.autograd.grad(stepper.solve(flow.field(), x, 0.0, 1.0).x.sum(), x)
    assert torch.isfinite(gradient).all() and (gradient != 0).any()


def test_bad_arguments_are_refused() -> None:
    for steps in (0, [0.0, 0.5], [0.0, 0.7, 0.3, 1.0], [0.5]):
        with pytest.raises(UserError, match="increase from 0 to 1"):
            EndpointStep(steps)
    with pytest.raises(UserError, match="power 1 or 2"):
        SDEStep(3, power=3)
    flow = TransportFlow(2, network={"hidden": (4,)}, path=SchroedingerBridge())
    with pytest.raises(UserError, match="needs an affine path"):
        EndpointStep(3).solve(flow.field(), torch.zeros(1, 2), 0.0, 1.0)
    with pytest.raises(UserError, match="use the head VelocityAndNoise"):
        SDEStep(3).solve(flow.field(), torch.zeros(1, 2), 0.0, 1.0)
