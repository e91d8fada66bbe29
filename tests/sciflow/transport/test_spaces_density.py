"""Densities of flows on spaces, with untrained networks of large weights: their integrals, by quadrature, are one."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from sciflow.networks.time_network import TimeMLP
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.spaces import Box, Euclidean, HyperbolicBall, ProductSpace, Rotations, Simplex, Space, Sphere, Torus
from sciflow.transport.steppers.fixed import FixedStep

pytestmark = pytest.mark.usefixtures("float64")


def _flow(size: int, space: Space, gain: float, steps: int = 16, **options) -> TransportFlow:
    flow = TransportFlow(size, space=space, network={"hidden": (32, 32)}, stepper=FixedStep(steps, method="rk4"), **options)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.mul_(gain)
    return flow


def _legendre(low: float, high: float, nodes: int) -> tuple[Tensor, Tensor]:
    x, w = (torch.tensor(part) for part in np.polynomial.legendre.leggauss(nodes))
    return (high - low) / 2 * x + (low + high) / 2, (high - low) / 2 * w


def _circle(nodes: int, period: float = 2 * math.pi) -> tuple[Tensor, Tensor]:
    # equal weights converge exponentially for periodic functions
    return ((torch.arange(nodes) + 0.5) / nodes - 0.5) * period, torch.full((nodes,), period / nodes)


def _grid(*rules: tuple[Tensor, Tensor]) -> tuple[list[Tensor], Tensor]:
    points = [x.flatten() for x in torch.meshgrid(*(x for x, _ in rules), indexing="ij")]
    weights = torch.stack([w.flatten() for w in torch.meshgrid(*(w for _, w in rules), indexing="ij")]).prod(0)
    return points, weights


def _circle_nodes() -> tuple[Tensor, Tensor]:
    x, w = _circle(120)
    return x[:, None], w


def _plane_nodes() -> tuple[Tensor, Tensor]:
    angle, w = _circle(120)
    return torch.stack([angle.cos(), angle.sin()], 1), w


def _torus_nodes() -> tuple[Tensor, Tensor]:
    x, w = _grid(_circle(40), _circle(40, 1.0))
    return torch.stack(x, 1), w


def _sphere_nodes() -> tuple[Tensor, Tensor]:
    (z, angle), w = _grid(_legendre(-1, 1, 28), _circle(56))
    s = (1 - z**2).sqrt()
    return torch.stack([s * angle.cos(), s * angle.sin(), z], 1), w


def _rotation_nodes() -> tuple[Tensor, Tensor]:
    # q = (sqrt(1-u) e^{ia}, sqrt(u) e^{ib}): volume du da db / 2, and every rotation is met twice
    (u, a, b), w = _grid(_legendre(0, 1, 10), _circle(20), _circle(20))
    c, s = (1 - u).sqrt(), u.sqrt()
    return torch.stack([c * a.cos(), c * a.sin(), s * b.cos(), s * b.sin()], 1), w / 4


def _disc_nodes(curvature: float) -> tuple[Tensor, Tensor]:
    root = math.sqrt(curvature)
    (r, angle), w = _grid(_legendre(0, 8, 40), _circle(32))
    rho = torch.tanh(root * r / 2) / root
    return torch.stack([rho * angle.cos(), rho * angle.sin()], 1), w * torch.sinh(root * r) / root


def _simplex_nodes() -> tuple[Tensor, Tensor]:
    (a, b), w = _grid(_legendre(0, 1, 32), _legendre(0, 1, 32))
    x = torch.stack([a, (1 - a) * b, (1 - a) * (1 - b)], 1)
    return x, w * (1 - a) * math.sqrt(3)


def _box_nodes() -> tuple[Tensor, Tensor]:
    x, w = _grid(_legendre(-1, 2, 36), _legendre(0, 1, 36))
    return torch.stack(x, 1), w


def _cylinder_nodes() -> tuple[Tensor, Tensor]:
    x, w = _grid(_circle(40), _legendre(-9, 9, 60))
    return torch.stack(x, 1), w


CASES = {
    "circle": (Torus(), _circle_nodes, 2.0),
    "circle in the plane": (Sphere(), _plane_nodes, 2.0),
    "torus": (Torus([2 * math.pi, 1.0]), _torus_nodes, 1.8),
    "sphere": (Sphere(), _sphere_nodes, 2.0),
    "rotations": (Rotations(), _rotation_nodes, 1.2),
    "disc": (HyperbolicBall(), lambda: _disc_nodes(1.0), 2.0),
    "curved disc": (HyperbolicBall(0.5), lambda: _disc_nodes(0.5), 2.0),
    "simplex": (Simplex(), _simplex_nodes, 1.3),
    "box": (Box([-1.0, 0.0], [2.0, 1.0]), _box_nodes, 1.4),
    "cylinder": (ProductSpace([Torus(), Euclidean()], [1, 1]), _cylinder_nodes, 1.6),
}


@pytest.mark.parametrize("name", CASES)
def test_densities_integrate_to_one(name: str) -> None:
    space, nodes, gain = CASES[name]
    x, weights = nodes()
    flow = _flow(x.shape[1], space, gain)
    with torch.no_grad():
        density = flow().log_prob(x).exp()
        assert density.max() / density.quantile(0.3) > 1.3  # not trivial
        assert ((density * weights).sum() - 1).abs() < 1e-4
        # the same point in other words has the same density
        if name == "rotations":
            torch.testing.assert_close(flow().log_prob(-x[:50]), flow().log_prob(x[:50]))
        if name == "circle":
            torch.testing.assert_close(flow().log_prob(x[:50] + 4 * math.pi), flow().log_prob(x[:50]))


@pytest.mark.parametrize("name", CASES)
def test_draws_have_the_density_they_say(name: str) -> None:
    """One solve forwards says what one backwards says; both dtypes; points of the space."""
    space, nodes, gain = CASES[name]
    flow = _flow(nodes()[0].shape[1], space, gain, steps=40)
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((50,))
        assert space.contains(x).all()
        torch.testing.assert_close(flow().log_prob(x), log_prob, rtol=1e-4, atol=2e-4)
        single = _flow(x.shape[1], space, 1.0).float()
        y, found = single().rsample_and_log_prob((50,))
        assert y.dtype == found.dtype == torch.float32 and space.contains(y).all() and torch.isfinite(found).all()


def test_no_density_outside() -> None:
    outside = {
        Box(0.0, 1.0): torch.tensor([[0.5, 1.5], [-0.1, 0.5]]),
        Simplex(): torch.tensor([[0.5, 0.8], [1.5, -0.5]]),
        Sphere(): torch.tensor([[0.5, 0.8], [0.0, 0.0]]),
        HyperbolicBall(): torch.tensor([[1.5, 0.0], [0.8, 0.8]]),
    }
    for space, x in outside.items():
        flow = _flow(2, space, 1.0, steps=4)
        assert (flow().log_prob(x) == -math.inf).all() and torch.isfinite(flow().log_prob(flow().sample((5,)))).all()


def test_hutchinson_agrees_on_a_sphere() -> None:
    """Eighty probes: within five standard errors for all of thirty points, a false alarm below 1e-4."""
    exact = _flow(3, Sphere(), 1.5)
    with torch.no_grad():
        x = exact().sample((30,))
        value, error = exact.sampling(divergence=Hutchinson(80, seed=0)).log_density(x)
        assert error is not None and ((value - exact().log_prob(x)) / error).abs().max() < 5


def test_masked_points_take_no_part() -> None:
    mask = torch.tensor([[[True] * 3] * 2 + [[False] * 3]])
    flow = TransportFlow((3, 3), space=Sphere(), network={"hidden": (8,)}, stepper=FixedStep(8, method="rk4"), maskable=True)
    with torch.no_grad():
        x, log_prob = flow(None, mask).rsample_and_log_prob((6,))
        assert (x[:, 0, 2] == 0).all() and Sphere().contains(x[:, 0], mask.expand(6, 3, 3)).all()
        torch.testing.assert_close(flow(None, mask).log_prob(x), log_prob, rtol=1e-5, atol=1e-5)
        for parameter in flow.network.parameters():
            parameter.zero_()
        torch.testing.assert_close(flow(None, mask).log_prob(x), torch.full((6, 1), -2 * math.log(4 * math.pi)))


@pytest.mark.parametrize("method", ["euler", "midpoint", "heun", "rk4"])
@pytest.mark.parametrize("steps", [1, 2, 7])
def test_coarse_steps_never_leave_a_box(method: str, steps: int) -> None:
    """Also with a network that knows nothing of the walls, and pushes through them."""
    space = Box([-1.0, 0.0, 2.0], [1.0, 0.5, 5.0])
    for network in (TimeMLP(3, hidden=(16,)), None):
        flow = TransportFlow(3, space=space, network=network or {"hidden": (16,)}, stepper=FixedStep(steps, method=method))
        with torch.no_grad():
            for parameter in flow.parameters():
                parameter.mul_(6)
            x = flow().sample((500,))
        low, high = torch.tensor(space.low), torch.tensor(space.high)
        assert (x >= low).all() and (x <= high).all()
        assert (flow().sample((500,)) - x).abs().max() > 0.1
