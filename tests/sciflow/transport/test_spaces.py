"""Exponential, logarithm, geodesics and projections of spaces: closed forms, round trips, where formulas fail."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces import Box, Euclidean, HyperbolicBall, ProductSpace, Rotations, Simplex, Space, Sphere, Torus
from sciflow.transport.spaces.even import arsinc, artanhc, cosine, log_sinhc, sinc, tanhc

SPACES: dict[str, tuple[Space, int]] = {
    "euclidean": (Euclidean(), 4),
    "torus": (Torus([2 * math.pi, 1.0, 360.0, 2.0]), 4),
    "circle": (Sphere(), 2),
    "sphere": (Sphere(), 4),
    "rotations": (Rotations(), 4),
    "hyperbolic": (HyperbolicBall(2.0), 4),
    "simplex": (Simplex(), 4),
    "box": (Box([-1.0, 0.0, 0.0, 3.0], [2.0, 1.0, 0.1, 7.0]), 4),
    "product": (ProductSpace([Torus(1.0), Sphere(), HyperbolicBall(), Box(-1.0, 1.0)], [2, 3, 2, 1]), 8),
}
every_space = pytest.mark.parametrize("name", SPACES)
both_dtypes = pytest.mark.parametrize("dtype", [torch.float32, torch.float64])


def _points(name: str, rows: int = 64, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    space, size = SPACES[name]
    generator = torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, size, generator=generator, dtype=torch.float64)
    if name == "euclidean":
        return (6 * uniform - 3).to(dtype)
    if name == "hyperbolic":
        return ((uniform - 0.5) / math.sqrt(2)).to(dtype)
    if name == "product":
        parts = [space.spaces[number].from_uniform(uniform.split([2, 3, 2, 1], 1)[number], 3) for number in (0, 1, 3)]
        return torch.cat([parts[0], parts[1], uniform[:, 5:7] - 0.5, parts[2]], 1).to(dtype)
    return space.from_uniform(uniform, size).to(dtype)


def _tangents(name: str, x: Tensor, *, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return SPACES[name][0].tangent(x, torch.randn(x.shape, generator=generator, dtype=torch.float64).to(x.dtype))


@every_space
@both_dtypes
def test_exp_undoes_log(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name][0]
    x, y = _points(name, dtype=dtype), _points(name, seed=2, dtype=dtype)
    back = space.exp(x, space.log(x, y))
    assert back.dtype == dtype
    close = 2e-5 if dtype == torch.float32 else 1e-12
    # compared as points: the torus writes them in several ways, rotations in two
    assert space.distance(back, y).max() < close * (100 if name in ("torus", "rotations", "hyperbolic", "product") else 10)
    assert space.contains(back).all()


@every_space
def test_log_undoes_exp_within_the_radius_of_injectivity(name: str) -> None:
    space = SPACES[name][0]
    x = _points(name)
    v = 0.02 * _tangents(name, x)
    torch.testing.assert_close(space.log(x, space.exp(x, v)), v, rtol=1e-8, atol=1e-13)


@every_space
def test_the_velocity_of_a_geodesic_is_its_derivative(name: str) -> None:
    space, size = SPACES[name]
    x, y = _points(name, size), _points(name, size, seed=2)  # as many rows as features: times must not meet features
    t, h = torch.linspace(0.1, 0.9, size, dtype=torch.float64).reshape(-1, 1), 1e-6
    point, velocity = space.geodesic(x, y, t)
    later, earlier = (space.geodesic(x, y, t + step)[0] for step in (h, -h))
    difference = later - earlier
    angles = {"torus": 4, "product": 2}.get(name, 0)  # these may have been wrapped in between
    period = torch.tensor([1.0] * size if name == "product" else [2 * math.pi, 1.0, 360.0, 2.0]).double()[:angles]
    difference[:, :angles] -= period * torch.round(difference[:, :angles] / period)
    torch.testing.assert_close(difference / (2 * h), velocity, rtol=1e-7, atol=1e-6)
    # of constant speed: the length of the whole
    length = space.distance(x, y)
    torch.testing.assert_close(space.squared_norm(point, velocity).sqrt(), length, rtol=1e-9, atol=1e-9)
    for row in range(size):
        alone = space.geodesic(x[row : row + 1], y[row : row + 1], t[row : row + 1])
        torch.testing.assert_close(alone[0][0], point[row])
        torch.testing.assert_close(alone[1][0], velocity[row])
    ends = [space.geodesic(x, y, torch.full_like(t, end))[0] for end in (0.0, 1.0)]
    assert space.distance(ends[0], x).max() < 1e-7 and space.distance(ends[1], y).max() < 1e-7


@every_space
@both_dtypes
def test_coinciding_points_have_distance_zero_and_finite_gradients(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name][0]
    x = _points(name, 500, dtype=dtype).requires_grad_()
    y = x.detach().clone().requires_grad_()
    distance = space.distance(x, y)
    assert (distance < (1e-5 if dtype == torch.float32 else 1e-13)).all()
    point, velocity = space.geodesic(x, y, torch.full((500, 1), 0.5, dtype=dtype))
    (distance.sum() + point.sum() + velocity.square().sum() + space.exp(x, torch.zeros_like(x)).sum()).backward()
    assert torch.isfinite(x.grad).all() and torch.isfinite(y.grad).all()


@both_dtypes
@pytest.mark.parametrize("name", ["circle", "sphere", "rotations", "torus"])
def test_the_cut_locus_is_reached_and_has_finite_gradients(name: str, dtype: torch.dtype) -> None:
    space = SPACES[name][0]
    x = _points(name, 200, dtype=dtype)
    if name == "rotations":  # a half turn about each axis
        w, i, j, k = x.unbind(1)
        y, farthest = torch.stack([-i, w, -k, j], 1), math.pi / 2
    elif name == "torus":
        half = torch.tensor([math.pi, 0.5, 180.0, 1.0], dtype=dtype)
        y, farthest = space.project(x + half), half.double().norm().item()
    else:
        y, farthest = -x, math.pi
    # exactly there and a few roundings beside it
    noise = torch.randn(200, x.shape[1], dtype=dtype, generator=torch.Generator().manual_seed(3)) * torch.finfo(dtype).eps
    for end in (y, space.project(y + 3 * noise), space.project(y + 300 * noise)):
        a, b = x.clone().requires_grad_(), end.clone().requires_grad_()
        v = space.log(a, b)
        length = space.distance(a, b)
        torch.testing.assert_close(length, torch.full_like(length, farthest), rtol=2e-4, atol=0)
        assert space.distance(space.exp(a, v), b).max() < (0.1 if dtype == torch.float32 else 1e-9)
        (v.sum() + length.sum() + space.geodesic(a, b, torch.full((200, 1), 0.3, dtype=dtype))[1].sum()).backward()
        assert torch.isfinite(a.grad).all() and torch.isfinite(b.grad).all()


@both_dtypes
@every_space
def test_zero_is_harmless(name: str, dtype: torch.dtype) -> None:
    """Absent points are 0: nothing may become NaN there, whatever is made of it afterwards."""
    space, size = SPACES[name]
    zero = torch.zeros(3, size, dtype=dtype, requires_grad=True)
    found = [space.project(zero), space.tangent(zero, zero), space.log(zero, zero), space.exp(zero, zero), space.embed(zero)]
    found += [space.squared_norm(zero, zero), space.correction(zero, zero), space.distance(zero, zero), space.fold(zero)[0]]
    sum(part.sum() for part in found).backward()
    assert all(torch.isfinite(part).all() for part in found) and torch.isfinite(zero.grad).all()
    if space.keeps_zero:
        assert (space.step(zero, zero) == 0).all()


@every_space
def test_steps_stay_on_the_space_and_projections_repeat(name: str) -> None:
    space = SPACES[name][0]
    x = _points(name, 300)
    for size in (0.01, 1.0, 50.0):
        y = space.step(x, size * _tangents(name, x))
        assert space.contains(y).all()
        torch.testing.assert_close(space.project(y), y)
    v = _tangents(name, x)
    small = 1e-4 * v / space.squared_norm(x, v).sqrt().unsqueeze(1)
    deviation = space.distance(space.step(x, small), space.exp(x, small))
    # to first order; rows that are folded back somewhere go another way
    assert deviation[space.contains(x + small)].max() < 1e-7 if name in ("simplex", "box") else deviation.max() < 1e-6


@every_space
def test_tangents_are_an_orthogonal_projection(name: str) -> None:
    space, size = SPACES[name]
    x = _points(name, 1)[0]
    projection = torch.stack([space.tangent(x, e) for e in torch.eye(size, dtype=torch.float64)], 1)
    torch.testing.assert_close(projection, projection.T)
    torch.testing.assert_close(projection @ projection, projection)
    moved = space.pullback(x, torch.randn(space.width(size), dtype=torch.float64))
    torch.testing.assert_close(space.tangent(x, moved), moved)


@every_space
def test_printed_pickled_meta(name: str) -> None:
    space, size = SPACES[name]
    assert repr(pickle.loads(pickle.dumps(space))) == repr(space) and type(space).__name__ in repr(space)
    x = torch.empty(5, size, device="meta")
    for found in (space.log(x, x), *space.geodesic(x, x, x[:, :1]), space.step(x, x), space.embed(x), space.correction(x, x)):
        assert found.device.type == "meta" and found.dtype == x.dtype


def test_known_lengths() -> None:
    ball, x, y = HyperbolicBall(1.0), torch.tensor([[0.3, 0.4]]).double(), torch.tensor([[-0.6, 0.2]]).double()
    # the closed form of Poincare's distance
    ratio = 2 * (x - y).square().sum() / ((1 - x.square().sum()) * (1 - y.square().sum()))
    torch.testing.assert_close(ball.distance(x, y)[0], torch.arccosh(1 + ratio))
    quarter = torch.tensor([[math.cos(math.pi / 8), math.sin(math.pi / 8), 0.0, 0.0]]).double()  # pi/4 about x
    one = torch.tensor([[1.0, 0.0, 0.0, 0.0]]).double()
    torch.testing.assert_close(Rotations().distance(one, -quarter), torch.tensor([math.pi / 8]).double())
    # curvature c is the ball of curvature 1 with lengths divided by sqrt c
    torch.testing.assert_close(HyperbolicBall(4.0).distance(x / 2, y / 2), ball.distance(x, y) / 2)


def test_rotations_are_seen_as_matrices() -> None:
    from scipy.spatial.transform import Rotation

    q = _points("rotations", 20)
    matrix = torch.from_numpy(Rotation.from_quat(q[:, [1, 2, 3, 0]].numpy()).as_matrix())
    torch.testing.assert_close(Rotations().embed(q).reshape(-1, 3, 3), matrix)
    u = torch.randn(20, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    a = q.clone().requires_grad_()
    (gradient,) = torch.autograd.grad((Rotations().embed(a) * u).sum(), a)
    torch.testing.assert_close(Rotations().pullback(q, u), Rotations().tangent(q, gradient) / 2)
    torch.testing.assert_close(Rotations().pullback(-q, u), -Rotations().pullback(q, u))


def test_the_metric_of_the_ball_is_that_of_its_correction() -> None:
    ball = HyperbolicBall(1.7)
    x = _points("hyperbolic", 5).requires_grad_()
    v = torch.randn(5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    log_root = 4 * ball.conformal(x).log().sum()
    (gradient,) = torch.autograd.grad(log_root, x)
    torch.testing.assert_close(ball.correction(x, v), (gradient * v).sum(1))


def test_a_box_folds_as_often_as_needed_and_mirrors() -> None:
    box = Box(1.0, 3.0)
    x = torch.tensor([[1.0, 2.5, 3.0, 3.5, 0.5, 5.5, 7.5, -4.0]]).double()
    point, sign = box.fold(x)
    torch.testing.assert_close(point, torch.tensor([[1.0, 2.5, 3.0, 2.5, 1.5, 1.5, 2.5, 2.0]]).double())
    assert sign.tolist() == [[1, 1, 1, -1, -1, 1, -1, -1]]
    inside = torch.rand(1000, 8, generator=torch.Generator().manual_seed(0)) * 2 + 1
    assert torch.equal(box.project(inside), inside)
    assert box.inside(box.project(torch.randn(1000, 8) * 1e4)).all()


def test_the_projection_on_the_simplex_is_the_nearest_point() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 5, dtype=torch.float64, generator=generator) * 2
    nearest = Simplex().project(x)
    assert Simplex().contains(nearest).all()
    others = Simplex().from_uniform(torch.rand(2000, 5, dtype=torch.float64, generator=generator), 5)
    # the variational inequality of a projection on a convex set
    assert ((x - nearest) @ others.T - ((x - nearest) * nearest).sum(1, keepdim=True)).max() < 1e-12


@pytest.mark.parametrize("function", [cosine, sinc, tanhc, artanhc, log_sinhc])
def test_even_functions_join_their_series_smoothly(function) -> None:
    formulas = {
        cosine: torch.cos, sinc: lambda r: torch.sin(r) / r, tanhc: lambda r: torch.tanh(r) / r,
        artanhc: lambda r: torch.atanh(r) / r, log_sinhc: lambda r: torch.log(torch.sinh(r) / r),
    }  # fmt: skip
    s = torch.logspace(-3, -0.2, 400, dtype=torch.float64, requires_grad=True)
    torch.testing.assert_close(function(s), formulas[function](s.sqrt()), rtol=1e-13, atol=1e-14)
    found, expected = (torch.autograd.grad(value.sum(), s)[0] for value in (function(s), formulas[function](s.sqrt())))
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-11)
    zero = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    first = torch.autograd.grad(function(zero).sum(), zero, create_graph=True)[0]
    second = torch.autograd.grad(first.sum(), zero)[0]
    assert torch.isfinite(first).all() and torch.isfinite(second).all() and second != 0


def test_the_series_of_the_arc_sine() -> None:
    s = torch.linspace(1e-6, 0.005, 100, dtype=torch.float64)
    torch.testing.assert_close(arsinc(s), torch.asin(s.sqrt()) / s.sqrt(), rtol=1e-14, atol=0)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Torus(-1.0), "positive and finite"),
        (lambda: Torus([1.0, 2.0]).width(3), "2 periods, the event 3 features"),
        (lambda: Box(1.0, 1.0), "lower edges below"),
        (lambda: Box([0.0, 0.0], [1.0, 1.0]).width(3), "2 features, the event 3"),
        (lambda: Sphere().width(1), "at least 2 coordinates"),
        (lambda: Rotations().width(3), "quaternion of 4"),
        (lambda: HyperbolicBall(-1.0), "positive number"),
        (lambda: Simplex().width(1), "at least 2"),
        (lambda: ProductSpace([Sphere()], [3, 2]), "one positive size for each"),
        (lambda: HyperbolicBall().uniforms(2), "infinite: give a base"),
    ],
)
def test_refusals(build, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build()
