"""Bases on manifolds: volumes from other formulas, moments, normalisation by quadrature, masks."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

import sciflow
from sciflow.distributions import BoxUniform, CircleUniform, DiagonalNormal
from sciflow.errors import UserError
from sciflow.transport.bases.manifold import UniformOn, WrappedNormal, base_on
from sciflow.transport.flow import TransportFlow
from sciflow.transport.spaces import Box, Euclidean, HyperbolicBall, ProductSpace, Rotations, Simplex, Sphere, Torus


@pytest.mark.parametrize(
    ("space", "size", "volume"),
    [
        (Sphere(), 2, 2 * math.pi),
        (Sphere(), 3, 4 * math.pi),
        (Sphere(), 4, 2 * math.pi**2),
        (Rotations(), 4, math.pi**2),
        (Torus([2.0, 3.0]), 2, 6.0),
        (Torus(2.0), 3, 8.0),
        (Simplex(), 2, math.sqrt(2)),
        (Simplex(), 3, math.sqrt(3) / 2),
        (Simplex(), 4, 1 / 3),  # a regular tetrahedron of edge sqrt 2
        (Box([0.0, -1.0], [1.0, 4.0]), 2, 5.0),
        (ProductSpace([Sphere(), Torus(2.0)], [3, 2]), 5, 16 * math.pi),
    ],
)
def test_volumes(space, size: int, volume: float) -> None:
    base = UniformOn(space, size)
    z = base.from_uniform(torch.rand(100, base.uniforms, dtype=torch.float64))
    assert z.shape == (100, size) and z.dtype == torch.float64 and space.contains(z).all()
    torch.testing.assert_close(base.log_prob(z), torch.full((100,), -math.log(volume), dtype=torch.float64))
    two = UniformOn(space, (2, size))
    pairs = two.rsample(10, dtype=torch.float32)
    assert pairs.shape == (10, 2, size) and two.uniforms == 2 * base.uniforms
    torch.testing.assert_close(two.log_prob(pairs), torch.full((10,), -2 * math.log(volume)))


def test_the_same_as_the_bases_of_the_plane() -> None:
    z = torch.tensor([[0.3, 0.2], [0.3, 5.0]])
    torch.testing.assert_close(UniformOn(Box([0.0, 0.0], [1.0, 2.0]), 2).log_prob(z), BoxUniform([0, 0], [1, 2]).log_prob(z))
    torch.testing.assert_close(UniformOn(Torus(4.0), 2).log_prob(z), CircleUniform(2, 2.0).log_prob(z))
    uniform = torch.rand(5, 2, dtype=torch.float64)
    torch.testing.assert_close(UniformOn(Torus(4.0), 2).from_uniform(uniform), CircleUniform(2, 2.0).from_uniform(uniform))


def test_moments_of_uniform_draws() -> None:
    """Known moments, each within five standard errors of 40,000 draws: false alarms below 1e-5 in all."""
    torch.manual_seed(0)
    n = 40_000
    sphere = UniformOn(Sphere(), 3).rsample(n, dtype=torch.float64)
    assert sphere.mean(0).abs().max() < 5 * math.sqrt(1 / 3 / n)
    assert (sphere[:, 0].square().mean() - 1 / 3).abs() < 5 * math.sqrt(4 / 45 / n)
    simplex = UniformOn(Simplex(), 3).rsample(n, dtype=torch.float64)
    assert (simplex[:, 0].square().mean() - 1 / 6).abs() < 5 * math.sqrt((1 / 15 - 1 / 36) / n)
    angle = 2 * torch.arccos(UniformOn(Rotations(), 4).rsample(n, dtype=torch.float64)[:, 0].abs())
    # Haar measure: the angle of rotation has density (1 - cos a) / pi, mean pi/2 + 2/pi
    assert (angle.mean() - (math.pi / 2 + 2 / math.pi)).abs() < 5 * 0.65 / math.sqrt(n)


@pytest.mark.parametrize(("curvature", "scale"), [(1.0, 1.0), (0.5, 1.5), (4.0, 0.3)])
def test_the_wrapped_normal_integrates_to_one_and_is_what_is_drawn(curvature: float, scale: float) -> None:
    ball = HyperbolicBall(curvature)
    base = WrappedNormal(ball, 2, scale)
    nodes, weights = np.polynomial.legendre.leggauss(100)
    r = torch.tensor((nodes + 1) * 4.5 * scale)
    root = math.sqrt(curvature)
    x = torch.stack([torch.tanh(root * r / 2) / root, torch.zeros_like(r)], 1)
    torch.testing.assert_close(ball.distance(torch.zeros_like(x), x), r, rtol=1e-8, atol=1e-8)
    circle = 2 * math.pi * torch.sinh(root * r) / root
    total = (base.log_prob(x).exp() * circle * torch.tensor(weights) * 4.5 * scale).sum()
    assert (total - 1).abs() < 1e-6
    torch.manual_seed(0)
    z = base.rsample(20_000, dtype=torch.float64)
    squares = ball.distance(torch.zeros_like(z), z).square() / scale**2  # chi-squared with 2 degrees
    assert (squares.mean() - 2).abs() < 5 * 2 / math.sqrt(20_000)


def test_masks_leave_points_out() -> None:
    mask = torch.tensor([[[True] * 3, [False] * 3], [[True] * 3, [True] * 3]])
    for base, per_point in (
        (UniformOn(Sphere(), (2, 3)), -math.log(4 * math.pi)),
        (WrappedNormal(HyperbolicBall(), (2, 3)), None),
    ):
        z = base.rsample(2, None, mask, dtype=torch.float64)
        assert (z[0, 1] == 0).all() and (z[1] != 0).all()
        found = base.log_prob(z, None, mask)
        if per_point is not None:
            torch.testing.assert_close(found, torch.tensor([per_point, 2 * per_point]).double())
        else:
            one = WrappedNormal(HyperbolicBall(), 3)
            torch.testing.assert_close(found[0], one.log_prob(z[:1, 0])[0])
    angles = UniformOn(Torus([2.0, 3.0]), 2)
    torch.testing.assert_close(
        angles.log_prob(torch.zeros(1, 2), None, torch.tensor([[False, True]])), -torch.tensor([3.0]).log()
    )


def test_the_base_that_belongs_to_a_space(tmp_path) -> None:
    assert isinstance(base_on(Euclidean(), (2, 3)), DiagonalNormal)
    mixed = ProductSpace([Euclidean(), Sphere(), HyperbolicBall()], [2, 3, 2])
    base = base_on(mixed, 7)
    z = base.rsample(5, dtype=torch.float64)
    assert mixed.contains(z).all() and torch.isfinite(base.log_prob(z)).all()
    with pytest.raises(UserError, match="give a base"):
        base_on(mixed, (3, 7))
    flow = TransportFlow(7, space=mixed, network={"hidden": (8,)})
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    assert [repr(space) for space in loaded.space.spaces] == [repr(space) for space in mixed.spaces]
    torch.testing.assert_close(loaded().log_prob(z.float()), flow().log_prob(z.float()))
