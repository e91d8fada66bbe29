"""Paths: coefficients, bridges and conversions against closed forms."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.errors import UserError
from sciflow.recorded import build, configuration
from sciflow.transport.pair import Pair
from sciflow.transport.paths import (
    Cosine,
    Linear,
    LinearBeta,
    Polynomial,
    ScheduledPath,
    SchroedingerBridge,
    StochasticInterpolant,
    VariancePreserving,
)
from sciflow.transport.spaces.base import Euclidean

from .analytic_paths import AffineMixture


class Arc(ScheduledPath):
    """A paper's own schedule: two functions."""

    def __init__(self, power: float = 1.5) -> None:
        self.power = power

    def a(self, t):
        return t**self.power

    def s(self, t):
        return torch.cos(0.5 * math.pi * t) * (1 - t * (1 - t))


AFFINE = [Linear(), VariancePreserving(), Polynomial(2.0), Polynomial(1.5), LinearBeta(), Arc()]
NOISY = [
    SchroedingerBridge(0.7),
    StochasticInterpolant(),
    StochasticInterpolant(VariancePreserving(), gamma="quadratic"),
    StochasticInterpolant(gamma="sine", scale=2.0),
]
SHAPES = [(4,), (1, 3, 3), (5, 2)]


pytestmark = pytest.mark.usefixtures("float64")


def _mixture(path, shape) -> AffineMixture:
    means = torch.stack([torch.linspace(1.0, 1.5, math.prod(shape)), torch.full((math.prod(shape),), -0.7)])
    return AffineMixture(path, means.reshape(2, *shape).tolist())


def _pair(rows: int, shape: tuple[int, ...], dtype=torch.float64) -> Pair:
    return Pair(torch.randn(rows, *shape, dtype=dtype), torch.randn(rows, *shape, dtype=dtype))


@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_coefficients_have_their_ends_and_their_derivatives(path) -> None:
    start, end = path.coefficients(torch.tensor(0.0)), path.coefficients(torch.tensor(1.0))
    left = 0.01 if isinstance(path, LinearBeta) else 0.0  # documented: some data are left
    assert abs(start[0]) <= left and end[1] < 1e-15
    assert abs(start[1] - 1) <= left and end[0] == 1
    t = torch.linspace(0.01, 0.99, 50).requires_grad_()
    a, s, da, ds = path.coefficients(t)
    torch.testing.assert_close(torch.autograd.grad(a.sum(), t, retain_graph=True)[0], da.detach())
    torch.testing.assert_close(torch.autograd.grad(s.sum(), t)[0], ds.detach())
    assert (path.angle(t)[1:] > path.angle(t)[:-1]).all()


@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_angle_tells_the_time(path) -> None:
    t = torch.linspace(0.0, 1.0, 21)
    torch.testing.assert_close(path.time(path.angle(t)), t, atol=1e-9, rtol=0)
    assert path.time(path.angle(t.float())).dtype == torch.float32
    assert path.time(path.angle(torch.tensor(0.3))).shape == ()


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", [*AFFINE, *NOISY], ids=repr)
def test_velocity_is_the_time_derivative_of_the_bridge(path, shape) -> None:
    pair, t, h = _pair(4, shape), torch.tensor([0.1, 0.35, 0.6, 0.9]), 1e-6

    def at(times):
        torch.manual_seed(5)  # the same noise
        return path(pair, times, Euclidean())

    numeric = (at(t + h).xt - at(t - h).xt) / (2 * h)
    torch.testing.assert_close(at(t).ut, numeric, atol=1e-8, rtol=1e-7)
    assert at(t).xt.shape == pair.x1.shape and (at(t).noise is not None) == path.noisy


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_every_quantity_tells_every_other(path, shape) -> None:
    mixture = _mixture(path, shape)
    t = torch.tensor([1e-3, 0.3, 0.7, 1 - 1e-3])  # as many rows as features for shape (4,)
    x = torch.randn(4, *shape)
    q = mixture.quantities(x, t)
    names = ("velocity", "endpoint", "noise", "score")
    for given in names:
        for wanted in names:
            convert = getattr(path, f"{wanted}_from_{given}", None)
            if convert is None:
                assert given == wanted or {given, wanted} == {"noise", "score"}
                continue
            torch.testing.assert_close(convert(q[given], x, t), q[wanted], atol=2e-7, rtol=1e-7, msg=f"{given} -> {wanted}")
            # one scalar time gives the rows at that time
            torch.testing.assert_close(convert(q[given], x, t[1])[1], q[wanted][1], atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(
        path.score_from_velocity(q["velocity"], x, t), -q["noise"] / path.deviation(t, x), rtol=1e-6, atol=0
    )


@pytest.mark.parametrize("path", [*AFFINE, *NOISY], ids=repr)
def test_times_meet_rows_and_never_features(path) -> None:
    pair, t = _pair(3, (3,)), torch.tensor([0.2, 0.5, 0.8])
    torch.manual_seed(1)
    whole = path(pair, t, Euclidean())
    torch.manual_seed(1)
    noise = torch.randn(3, 3) if path.noisy else torch.zeros(3, 3)
    for i in range(3):
        mean = getattr(path, "mean", path)
        a, s, da, ds = mean.coefficients(t[i])
        gamma, rate = (path.gamma(t[i]), path.gamma_rate(t[i])) if path.noisy else (0, 0)
        torch.testing.assert_close(whole.xt[i], a * pair.x1[i] + s * pair.x0[i] + gamma * noise[i])
        torch.testing.assert_close(whole.ut[i], da * pair.x1[i] + ds * pair.x0[i] + rate * noise[i])
    with pytest.raises(ValueError, match=r"\(4,\).*\(3,\).*\(3, 3\)"):
        path(pair, torch.rand(4), Euclidean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("path", AFFINE, ids=repr)
def test_both_ends_are_finite(path, dtype) -> None:
    pair = _pair(2, (3,), dtype)
    t = torch.tensor([0.0, 1.0], dtype=dtype)
    bridge = path(pair, t, Euclidean())
    assert torch.isfinite(bridge.ut).all()
    torch.testing.assert_close(bridge.xt[1], pair.x1[1])
    given = torch.randn(2, 3, dtype=dtype, requires_grad=True)
    for name in ("endpoint_from_velocity", "velocity_from_endpoint", "noise_from_velocity", "velocity_from_noise",
                 "score_from_velocity", "velocity_from_score", "endpoint_from_score", "score_from_endpoint"):  # fmt: skip
        found = getattr(path, name)(given, bridge.xt, t)
        assert found.dtype == dtype and torch.isfinite(found).all(), name
        assert torch.isfinite(torch.autograd.grad(found.sum(), given)[0]).all(), name
    # where the quotient is 0 / 0 the limit is taken: the endpoint of data is the data
    torch.testing.assert_close(path.endpoint_from_velocity(bridge.ut, bridge.xt, t)[1], pair.x1[1])
    assert torch.isfinite(path.velocity_from_endpoint(pair.x1, bridge.xt, t)).all()


@pytest.mark.parametrize("path", [*AFFINE, *NOISY], ids=repr)
def test_the_dtype_is_that_of_the_rows(path) -> None:
    for dtype, times in ((torch.float64, torch.float32), (torch.float32, torch.float64)):
        bridge = path(_pair(2, (3,), dtype), torch.tensor([0.25, 0.5], dtype=times), Euclidean())
        assert bridge.xt.dtype == bridge.ut.dtype == dtype
    pair = Pair(torch.randn(2, 3, device="meta"), torch.randn(2, 3, device="meta"))
    assert path(pair, torch.rand(2, device="meta"), Euclidean()).ut.shape == (2, 3)


@pytest.mark.parametrize("path", [*AFFINE, *NOISY], ids=repr)
def test_gradients_reach_both_endpoints(path) -> None:
    x0, x1 = torch.randn(3, 2, requires_grad=True), torch.randn(3, 2, requires_grad=True)
    bridge = path(Pair(x0, x1), torch.tensor([0.2, 0.5, 0.8]), Euclidean())
    for gradient in torch.autograd.grad((bridge.ut * bridge.xt).sum(), (x0, x1)):
        assert (gradient != 0).all()


@pytest.mark.parametrize("path", [*AFFINE, *NOISY], ids=repr)
def test_paths_are_recorded(path) -> None:
    again = build(configuration(path), trust=(type(path).__module__.partition(".")[0],))
    assert repr(again) == repr(path)
    pair, t = _pair(3, (2,)), torch.rand(3)
    torch.manual_seed(2)
    first = path(pair, t, Euclidean())
    torch.manual_seed(2)
    assert torch.equal(first.ut, again(pair, t, Euclidean()).ut)


def test_the_bridge_is_brownian() -> None:
    """Variance of x_t given its ends is sigma^2 t (1 - t), within 5 standard errors (false alarm < 1e-5 for 3 times)."""
    path, rows = SchroedingerBridge(0.7), 20000
    pair = Pair(torch.zeros(rows, 1), torch.ones(rows, 1))
    for time in (0.1, 0.5, 0.9):
        t = torch.full((rows,), time)
        bridge = path(pair, t, Euclidean())
        spread = bridge.xt - time
        wanted = 0.49 * time * (1 - time)
        assert abs(spread.square().mean() / wanted - 1) < 5 * math.sqrt(2 / rows)
        torch.testing.assert_close(bridge.xt, time + path.deviation(t, bridge.xt) * bridge.noise)
        torch.testing.assert_close(bridge.ut, 1 + (1 - 2 * time) / (2 * time * (1 - time)) * spread)


@pytest.mark.parametrize("path", NOISY, ids=repr)
def test_noisy_paths_are_finite_at_their_ends_and_keep_absent_features_absent(path) -> None:
    mask = torch.tensor([[True, False], [True, True]])
    pair = Pair(torch.randn(2, 2) * mask, torch.randn(2, 2) * mask, mask=mask)
    for dtype in (torch.float32, torch.float64):
        rows = pair._replace(x0=pair.x0.to(dtype), x1=pair.x1.to(dtype))
        bridge = path(rows, torch.tensor([0.0, 1.0]), Euclidean())
        assert torch.isfinite(bridge.ut).all()
        assert bridge.xt[0, 1] == bridge.ut[0, 1] == bridge.noise[0, 1] == 0
        torch.testing.assert_close(bridge.xt[0], rows.x0[0])
        torch.testing.assert_close(bridge.xt[1], rows.x1[1])


@pytest.mark.parametrize("path", NOISY, ids=repr)
@pytest.mark.parametrize("name", ["endpoint_from_velocity", "velocity_from_endpoint", "noise_from_velocity"])
def test_noisy_paths_say_that_the_velocity_is_not_enough(path, name) -> None:
    with pytest.raises(UserError, match="use the head VelocityAndNoise"):
        getattr(path, name)(torch.zeros(2, 1), torch.zeros(2, 1), torch.full((2,), 0.5))


def test_bad_arguments_are_refused() -> None:
    assert Cosine is VariancePreserving
    with pytest.raises(UserError, match="at least 1"):
        Polynomial(0.5)
    with pytest.raises(UserError, match="beta_min"):
        LinearBeta(3.0, 1.0)
    with pytest.raises(UserError, match="unknown gamma 'square'; known are brownian"):
        StochasticInterpolant(gamma="square")
