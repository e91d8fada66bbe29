"""The geodesic path against its definition, and its conversions against each other."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.transport.bases.manifold import UniformOn, WrappedNormal
from sciflow.transport.flow import TransportFlow
from sciflow.transport.pair import Pair
from sciflow.transport.paths.geodesic import Geodesic
from sciflow.transport.paths.linear import Linear
from sciflow.transport.spaces import Box, Euclidean, HyperbolicBall, Rotations, Simplex, Space, Sphere, Torus


def _pair(space: Space, rows: int, size: int, dtype: torch.dtype = torch.float64) -> Pair:
    torch.manual_seed(0)
    base = WrappedNormal(space, size) if isinstance(space, HyperbolicBall) else UniformOn(space, size)
    return Pair(base.rsample(rows, dtype=dtype), base.rsample(rows, dtype=dtype))


CURVED = [Torus(), Sphere(), Rotations(), HyperbolicBall(), Simplex(), Box(-1.0, 2.0)]


@pytest.mark.parametrize("space", CURVED, ids=repr)
@pytest.mark.parametrize("rows", [4, 33])  # 4: as many rows as features
def test_velocity_and_endpoint_say_the_same(space: Space, rows: int) -> None:
    pair = _pair(space, rows, 4)
    t = torch.linspace(0.05, 0.95, rows, dtype=torch.float64)
    path = Geodesic().on(space)
    bridge = path(pair, t, space)
    assert space.contains(bridge.xt).all() and bridge.t is t
    torch.testing.assert_close(path.velocity_from_endpoint(pair.x1, bridge.xt, t), bridge.ut, rtol=1e-8, atol=1e-8)
    endpoint = path.endpoint_from_velocity(bridge.ut, bridge.xt, t)
    assert space.distance(endpoint, pair.x1).max() < 1e-7
    back = path.velocity_from_endpoint(endpoint, bridge.xt, t)
    torch.testing.assert_close(back, bridge.ut, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("space", [Euclidean(), Simplex(), Box(0.0, 1.0)], ids=repr)
def test_straight_spaces_have_the_straight_path(space: Space) -> None:
    pair = _pair(Simplex(), 5, 5)
    t = torch.rand(5, dtype=torch.float64)
    geodesic, linear = Geodesic()(pair, t, space), Linear()(pair, t, space)
    torch.testing.assert_close(geodesic.xt, linear.xt)
    torch.testing.assert_close(geodesic.ut, linear.ut)


def test_gradients_reach_both_ends_and_float32_stays() -> None:
    pair = _pair(Sphere(), 6, 3, torch.float32)
    x0, x1 = (x.requires_grad_() for x in (pair.x0, pair.x1))
    bridge = Geodesic()(Pair(x0, x1), torch.rand(6), Sphere())
    assert bridge.xt.dtype == bridge.ut.dtype == torch.float32
    (bridge.xt.sum() + bridge.ut.sum()).backward()
    assert x0.grad.abs().sum() > 0 and x1.grad.abs().sum() > 0


def test_a_flow_tells_its_path_the_space() -> None:
    flow = TransportFlow(3, space=Sphere(), network={"hidden": (8,)})
    assert isinstance(flow.path, Geodesic) and flow.path.space is flow.space
    assert isinstance(TransportFlow(3, space=Box(), network={"hidden": (8,)}).path, Linear)
    x, t = flow().sample((7,)), torch.full((7,), 0.4)
    with torch.no_grad():
        field = flow.field()
        endpoint = field.endpoint(t, x)
        assert Sphere().contains(endpoint).all()
        torch.testing.assert_close(flow.path.velocity_from_endpoint(endpoint, x, t), field(t, x), atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="lives on"):
        TransportFlow(3, space=Sphere(), path=Geodesic(Torus()), network={"hidden": (8,)})
