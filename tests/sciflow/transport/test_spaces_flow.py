"""Flows on spaces: orders of convergence against closed forms, and what they learn."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.networks.time_network import TimeNetwork
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.spaces import Box, Rotations, Simplex, Sphere, Torus
from sciflow.transport.steppers.fixed import FixedStep

pytestmark = pytest.mark.usefixtures("float64")


class _Known(TimeNetwork):
    """A velocity in closed form."""

    def __init__(self, size: int, function) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels, self.function = torch.Size((size,)), 0, 1, function

    def forward(self, x, t, context=None, mask=None, s=None) -> Tensor:
        return self.function(x, t.unsqueeze(1)).unsqueeze(1)


def _order(flow: TransportFlow, x: Tensor, exact: Tensor, log_det: Tensor, method: str) -> tuple[float, float]:
    errors = []
    for steps in (8, 16):
        solution = flow.sampling(stepper=FixedStep(steps, method=method)).solve(x, None, None, 0.0, 1.0, density=True)
        errors.append(((solution.x - exact).abs().max(), (solution.log_det.value - log_det).abs().max()))
    return tuple(math.log2(before / after) for before, after in zip(*errors, strict=True))  # type: ignore[return-value]


@pytest.mark.parametrize(("method", "order"), [("euler", 1), ("midpoint", 2), ("heun", 2), ("rk4", 4)])
def test_orders_of_convergence_on_the_sphere(method: str, order: int) -> None:
    x = torch.randn(20, 3)
    x = x / x.norm(dim=1, keepdim=True)
    # rotation about z with the speed 3 cos 3t: the angle sin 3, and no volume changes
    turn = _Known(3, lambda x, t: 3 * torch.cos(3 * t) * torch.stack([-x[:, 1], x[:, 0], 0 * x[:, 2]], 1))
    c, s = math.cos(math.sin(3.0)), math.sin(math.sin(3.0))
    end = torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1], x[:, 2]], 1)
    found = _order(TransportFlow(3, space=Sphere(), network=turn), x, end, torch.zeros(20) + 1e-30, method)
    assert found[0] > order - 0.3
    # the gradient of 2z (tangents are made by the space): z = tanh(2t + a), div = -4z; quite another extension of the field
    climb = _Known(3, lambda x, t: torch.tensor([0.0, 0.0, 2.0]) + 5 * x + 0 * t)
    a = torch.atanh(x[:, 2])
    z = torch.tanh(2 + a)
    scale = ((1 - z**2) / (1 - x[:, 2] ** 2)).sqrt()
    end = torch.stack([scale * x[:, 0], scale * x[:, 1], z], 1)
    log_det = -2 * (torch.log(torch.cosh(2 + a)) - torch.log(torch.cosh(a)))
    found = _order(TransportFlow(3, space=Sphere(), network=climb), x, end, log_det, method)
    assert found[0] > order - 0.3 and found[1] > order - 0.3


def test_order_four_for_rotations_and_in_a_box() -> None:
    # dq/dt = q (0, 0, 0, w): turns about the body's z axis, q as a pair of complex numbers is multiplied by e^{i w t}
    q = torch.randn(20, 4)
    q = q / q.norm(dim=1, keepdim=True)
    spin = _Known(4, lambda q, t: 4 * t * torch.stack([-q[:, 3], q[:, 2], -q[:, 1], q[:, 0]], 1))
    c, s = math.cos(2.0), math.sin(2.0)
    end = torch.stack(
        [c * q[:, 0] - s * q[:, 3], c * q[:, 1] + s * q[:, 2], c * q[:, 2] - s * q[:, 1], c * q[:, 3] + s * q[:, 0]], 1
    )
    found = _order(TransportFlow(4, space=Rotations(), network=spin), q, end, torch.zeros(20) + 1e-30, "rk4")
    assert found[0] > 3.7
    # a field that vanishes at the walls; in the box [0, 2] tan(pi x / 4) grows exponentially
    x = torch.linspace(0.01, 1.99, 40)[:, None]
    push = _Known(1, lambda x, t: torch.sin(math.pi * x / 2) + 0 * t)
    tangent = torch.tan(math.pi * x / 4) * math.exp(math.pi / 2)
    end = torch.atan(tangent) * 4 / math.pi
    log_det = torch.log(torch.sin(math.pi * end / 2) / torch.sin(math.pi * x / 2))[:, 0]
    found = _order(TransportFlow(1, space=Box(0.0, 2.0), network=push), x, end, log_det, "rk4")
    assert found[0] > 3.7 and found[1] > 3.7


def test_beyond_a_wall_the_field_is_mirrored() -> None:
    flow = TransportFlow(
        2, space=Box(0.0, 1.0), network=_Known(2, lambda x, t: torch.cat([x[:, :1] ** 2, 1 + 0 * t + 0 * x[:, 1:]], 1))
    )
    field, t = flow.field(), torch.tensor(0.3)
    inside, outside = torch.tensor([[0.8, 0.3]]), torch.tensor([[1.2, -0.3]])
    torch.testing.assert_close(field(t, outside), -field(t, inside))
    trace = flow.divergence.bind(field, inside)
    torch.testing.assert_close(trace(t, outside)[1], trace(t, inside)[1])
    # an error estimate is made of slopes: with a stage beyond the wall they differ, though the folded points may agree
    far = field(t, torch.tensor([[0.99 + 0.02, 0.3]]))
    assert (far - field(t, torch.tensor([[0.99, 0.3]])))[0, 0].abs() > 1.9


def _fit(flow: TransportFlow, x: Tensor, epochs: int = 12) -> None:
    flow.double()
    sciflow.fit(
        flow, x, objective=FlowMatching(), epochs=epochs, batch_size=256, learning_rate=4e-3, progress=False, validation=0
    )


def test_learns_a_direction_on_the_sphere() -> None:
    mean = torch.tensor([0.6, 0.0, -0.8])
    x = Sphere().project(mean + 0.25 * torch.randn(4096, 3))
    flow = TransportFlow(3, space=Sphere(), network={"hidden": (48, 48)}, stepper=FixedStep(10))
    _fit(flow, x)
    with torch.no_grad():
        draws = flow().sample((4000,))
        assert (draws.norm(dim=1) - 1).abs().max() < 1e-12
        assert (draws.mean(0) - x.mean(0)).norm() < 0.05  # direction and concentration
        held = Sphere().project(mean + 0.25 * torch.randn(500, 3))
        assert flow().log_prob(held).mean() > -math.log(4 * math.pi) + 1.5


def test_learns_an_angle_at_the_seam_of_a_torus() -> None:
    x = Torus().project(torch.tensor([math.pi, 1.0]) + 0.4 * torch.randn(4096, 2))
    flow = TransportFlow(2, space=Torus(), network={"hidden": (48, 48)}, stepper=FixedStep(10))
    _fit(flow, x)
    with torch.no_grad():
        draws = flow().sample((4000,))
    for number, angle in enumerate((math.pi, 1.0)):
        wave = torch.polar(torch.ones(4000), draws[:, number]).mean()
        assert abs(math.remainder(wave.angle().item() - angle, 2 * math.pi)) < 0.05
        assert abs(wave.abs().item() - math.exp(-0.08)) < 0.05


def test_learns_rotations_whatever_their_sign() -> None:
    centre = torch.tensor([0.5, -0.5, 0.5, 0.5])
    x = Rotations().project(centre + 0.1 * torch.randn(4096, 4)) * torch.randint(0, 2, (4096, 1)).mul(2).sub(1)
    flow = TransportFlow(4, space=Rotations(), network={"hidden": (48, 48)}, stepper=FixedStep(10))
    _fit(flow, x, epochs=25)
    with torch.no_grad():
        distance = Rotations().distance(flow().sample((2000,)), centre.expand(2000, 4))
    expected = Rotations().distance(x, centre.expand(4096, 4))
    assert abs(distance.mean() - expected.mean()) < 0.05 and distance.quantile(0.99) < 0.8


def test_learns_a_density_that_ends_at_the_walls_of_a_box() -> None:
    """Beta(1, 3) times uniform: 3 (1 - x)^2, at one wall at its highest."""
    x = torch.stack([1 - torch.rand(8192) ** (1 / 3), 4 * torch.rand(8192) - 2], 1)
    flow = TransportFlow(
        2, space=Box([0.0, -2.0], [1.0, 2.0]), network={"hidden": (48, 48)}, stepper=FixedStep(16, method="rk4")
    )
    _fit(flow, x)
    nodes = (torch.arange(40) + 0.5) / 40
    grid = torch.cartesian_prod(nodes, 4 * nodes - 2)
    with torch.no_grad():
        density = flow().log_prob(grid).exp()
        assert (density.mean() * 4 - 1).abs() < 1e-3
        assert (density - 0.75 * (1 - grid[:, 0]) ** 2).abs().mean() < 0.055
        assert (flow().log_prob(torch.tensor([[-0.01, 0.0], [0.5, 2.1]])) == -math.inf).all()
        for steps in (1, 2, 5):
            draws = flow.sampling(stepper=FixedStep(steps, method="euler"))().sample((2000,))
            assert flow.space.contains(draws).all()
        draws = flow().sample((4000,))
        assert flow.space.contains(draws).all() and (draws.mean(0) - torch.tensor([0.25, 0.0])).abs().max() < 0.08


def test_learns_on_the_simplex() -> None:
    x = torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 5.0])).sample((4096,))
    flow = TransportFlow(3, space=Simplex(), network={"hidden": (48, 48)}, stepper=FixedStep(10))
    _fit(flow, x, epochs=30)
    with torch.no_grad():
        draws = flow().sample((4000,))
        assert flow.space.contains(draws).all() and (draws.mean(0) - torch.tensor([0.2, 0.3, 0.5])).abs().max() < 0.03
        # Dirichlet densities are per area of two coordinates, the flow's per area of the plane
        expected = torch.distributions.Dirichlet(torch.tensor([2.0, 3.0, 5.0])).log_prob(x[:300]) - 0.5 * math.log(3)
        assert (flow().log_prob(x[:300]) - expected).mean().abs() < 0.15


def test_draws_do_not_depend_on_chunks() -> None:
    flow = TransportFlow(4, space=Rotations(), network={"hidden": (8,)}, stepper=FixedStep(3))
    whole = sciflow.draw(flow(), 9, seed=3, progress=False)
    parts = sciflow.draw(flow(), 9, seed=3, chunk=2, progress=False)
    torch.testing.assert_close(torch.tensor(whole["posterior"]["x"].values), torch.tensor(parts["posterior"]["x"].values))
