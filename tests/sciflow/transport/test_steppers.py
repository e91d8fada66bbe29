"""Steppers against closed forms: fixed steps, adaptive steps, each row by itself."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.errors import UserError
from sciflow.transport.divergence import Exact, Hutchinson
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow
from sciflow.transport.paths.linear import Linear
from sciflow.transport.spaces.base import Euclidean
from sciflow.transport.steppers import TABLEAUS, Adaptive, FixedStep, SolverFailed

from .analytic import GaussianMixtureVelocity

PAIRS = [name for name, tableau in TABLEAUS.items() if tableau.error is not None]


pytestmark = pytest.mark.usefixtures("float64")


class Plain(Field):
    """A field from a function of (t, x, rate) with one rate per row; counts the rows it is asked for."""

    def __init__(self, function, rate=None, counts=None, mask=None) -> None:
        self.function, self.rate, self.mask = function, rate, mask
        self.counts = [] if counts is None else counts
        self.path, self.space = Linear(), Euclidean()

    def __call__(self, t, x):
        self.counts.append(len(x))
        return self.function(t.expand(len(x))[:, None], x, None if self.rate is None else self.rate[:, None])

    def rows(self, index):
        rate = None if self.rate is None else self.rate[index]
        return Plain(self.function, rate, self.counts, None if self.mask is None else self.mask[index])


@pytest.mark.parametrize("name", TABLEAUS)
@pytest.mark.parametrize("backwards", [False, True])
def test_fixed_steps_converge_at_their_order(name: str, backwards: bool) -> None:
    field = Plain(lambda t, x, rate: x * torch.cos(3 * t) + torch.sin(t) * torch.ones_like(x) + 0.1 * x * x)
    x = torch.linspace(-2, 2, 30)[:, None]
    start, end = (1.0, 0.0) if backwards else (0.0, 1.0)
    exact = FixedStep(400, method="dopri5").solve(field, x, start, end).x
    errors = [(FixedStep(n, method=name).solve(field, x, start, end).x - exact).square().mean().sqrt() for n in (40, 80)]
    assert torch.log2(errors[0] / errors[1]) > TABLEAUS[name].order - 0.3


@pytest.mark.parametrize("method", PAIRS)
def test_adaptive_meets_its_tolerance_there_and_back(method: str) -> None:
    rate = torch.linspace(0.1, 8.0, 7)
    tolerance = 1e-4 if method == "heun" else 1e-6
    field = Plain(lambda t, x, rate: rate * x * torch.cos(rate * t), rate)
    x = torch.randn(7, 3)
    stepper = Adaptive(tolerance, method=method, max_steps=20000)
    found = stepper.solve(field, x, 0.0, 1.0, divergence=None)
    exact = x * torch.exp(torch.sin(rate))[:, None]
    assert ((found.x - exact) / exact).abs().max() < 10 * tolerance
    assert (stepper.solve(field, found.x, 1.0, 0.0).x - x).abs().max() < 30 * tolerance
    assert found.evaluations[-1] > found.evaluations[0]  # type: ignore[index]


def test_rows_do_not_know_each_other() -> None:
    """A row's solution is that of a solve of its own, and a stiff row costs the others nothing."""
    rate = torch.full((64,), 1.0)
    rate[5] = 400.0
    field = Plain(lambda t, x, rate: -rate * (x - torch.cos(t)), rate)
    x = torch.randn(64, 2)
    whole = Adaptive(1e-5).solve(field, x, 0.0, 1.0)
    alone = Adaptive(1e-5).solve(field.rows(torch.tensor([5])), x[5:6], 0.0, 1.0)
    torch.testing.assert_close(whole.x[5], alone.x[0], rtol=0, atol=1e-13)
    assert whole.evaluations[5] == alone.evaluations[0] > 20 * whole.evaluations[6]
    assert len(field.counts) >= int(whole.evaluations[5])
    assert sum(field.counts) < 64 * 1.5 * int(whole.evaluations[6]) + 2 * int(whole.evaluations[5])
    assert (whole.x[6:] - _relaxed(x[6:], 1.0)).abs().max() < 1e-4


def _relaxed(x, rate: float):
    particular = lambda t: (rate**2 * math.cos(t) + rate * math.sin(t)) / (1 + rate**2)  # noqa: E731
    return particular(1.0) + (x - particular(0.0)) * math.exp(-rate)


def test_finished_rows_wait_unchanged_where_a_field_has_no_rows() -> None:
    rate = torch.tensor([1.0, 50.0])
    field = Plain(lambda t, x, rate: -rate * x, rate)
    with_rows = Adaptive(1e-6).solve(field, torch.ones(2, 1), 0.0, 1.0)
    field.rows = lambda index: None  # type: ignore[method-assign]
    without = Adaptive(1e-6).solve(field, torch.ones(2, 1), 0.0, 1.0)
    torch.testing.assert_close(with_rows.x, without.x)
    assert torch.equal(with_rows.evaluations, without.evaluations)  # type: ignore[arg-type]


def test_looks_at_values_once_in_eight_steps(monkeypatch) -> None:
    """On the CPU a look is free; elsewhere it waits for the device."""
    from sciflow.transport.steppers.adaptive_rows import Solve

    looks = []
    original = Solve._status
    monkeypatch.setattr(Solve, "_status", lambda self, rows: (looks.append(1), original(self, rows))[1])
    field = Plain(lambda t, x, rate: -rate * x, torch.tensor([1.0, 30.0]))
    found = Adaptive(1e-8, check_every=8).solve(field, torch.ones(2, 1), 0.0, 1.0)
    steps = len(field.counts) / 6
    assert steps > 24 and len(looks) <= steps / 8 + 2
    torch.testing.assert_close(found.x, Adaptive(1e-8).solve(field, torch.ones(2, 1), 0.0, 1.0).x)


@pytest.mark.parametrize("method", ["bogacki_shampine5", "tsit5", "dopri5", "bogacki_shampine"])
@pytest.mark.parametrize("backwards", [False, True])
def test_trajectory_is_the_solution_at_all_times(method: str, backwards: bool) -> None:
    network = GaussianMixtureVelocity([[1.5, 0.0], [-1.0, 0.5]], [0.6, 0.9])
    field = TransportFlow(2, network=network).field()
    times = [0.0, 0.13, 0.5, 0.77, 0.9, 1.0]
    times = times[::-1] if backwards else times
    x = torch.randn(5, 2)
    points, log_det = Adaptive(1e-6, method=method).trajectory(field, x, times, divergence=Exact())
    assert torch.equal(points[0], x) and log_det is not None
    for number, time in list(enumerate(times))[1::2]:
        exact = FixedStep(20, method="dopri5").solve(field, x, times[0], time, divergence=Exact())
        assert (points[number] - exact.x).abs().max() < 1e-5
        assert (log_det[number] - exact.log_det.value).abs().max() < 1e-5  # type: ignore[union-attr]


@pytest.mark.parametrize("size", [2, 8, 32])
@pytest.mark.parametrize("method", ["bogacki_shampine5", "tsit5", "dopri5", "bogacki_shampine"])
def test_density_of_a_mixture_to_a_thousandth_of_a_nat(size: int, method: str) -> None:
    network = GaussianMixtureVelocity([[1.5] * size, [-1.0] + [0.5] * (size - 1)], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(size, network=network, stepper=Adaptive(1e-5, method=method))
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((50,))
        assert (log_prob - network.log_prob(x)).abs().max() < 1e-3
        assert (flow().log_prob(x) - network.log_prob(x)).abs().max() < 1e-3


def test_the_densitys_own_error_is_controlled() -> None:
    """In many dimensions the divergence changes faster than the point moves."""
    network = GaussianMixtureVelocity([[1.5] * 32, [-1.0] + [0.5] * 31], [0.6, 0.9], [0.3, 0.7])
    flow = TransportFlow(32, network=network)
    x = flow().sample((60,))
    errors = []
    with torch.no_grad():
        for choice in (True, False):
            found = flow.sampling(stepper=Adaptive(1e-5, density_error=choice)).log_density(x).value
            errors.append(float((found - network.log_prob(x)).abs().max()))
    assert errors[0] < 1e-3 and errors[1] > 3 * errors[0]


def test_long_steps_are_not_believed() -> None:
    """Steps begin at tolerance^(1/order) without an evaluation for it and grow carefully beyond; short ones grow fast."""
    calm = Plain(lambda t, x, rate: torch.cos(t) * torch.ones_like(x))
    found = Adaptive(1e-5).solve(calm, torch.zeros(1, 1), 0.0, 1.0)
    assert 1 + 7 * 4 <= int(found.evaluations[0]) <= 1 + 7 * 6  # type: ignore[index]
    short = Adaptive(1e-5, first_step=1e-6).solve(calm, torch.zeros(1, 1), 0.0, 1.0)
    assert int(short.evaluations[0]) <= 1 + 7 * 13  # type: ignore[index]  # five factors of ten first
    rejected = Plain(lambda t, x, rate: 40 * torch.cos(40 * t) * torch.ones_like(x))
    hard = Adaptive(1e-4).solve(rejected, torch.zeros(1, 1), 0.0, 1.0)
    assert abs(float(hard.x) - math.sin(40.0)) < 1e-3


def test_masked_features_do_not_count() -> None:
    mask = torch.tensor([[True, True, False, False]]).expand(3, 4)
    plain = Plain(lambda t, x, rate: -5 * x)
    masked = Plain(lambda t, x, rate: -5 * x, mask=mask)
    x = torch.randn(3, 2)
    padded = torch.cat((x, torch.zeros(3, 2)), 1)
    found, wanted = Adaptive(1e-5).solve(masked, padded, 0.0, 1.0), Adaptive(1e-5).solve(plain, x, 0.0, 1.0)
    torch.testing.assert_close(found.x[:, :2], wanted.x)
    assert torch.equal(found.evaluations, wanted.evaluations)  # type: ignore[arg-type]


@pytest.mark.parametrize("stepper", [FixedStep(4), FixedStep(3, method="dopri5"), Adaptive(1e-3)])
def test_float32_and_images_stay_what_they_are(stepper) -> None:
    flow = TransportFlow((1, 2, 3), network={"hidden": (8,)}, stepper=stepper).float()
    x = torch.randn(5, 1, 2, 3, dtype=torch.float32)
    solution = flow.solve(x, None, None, 0.0, 1.0, density=True)
    assert solution.x.shape == x.shape and solution.x.dtype == torch.float32
    assert solution.log_det.value.shape == (5,) and solution.log_det.value.dtype == torch.float32  # type: ignore[union-attr]


def test_failures_name_row_time_step_and_error() -> None:
    bursting = Plain(lambda t, x, rate: rate * x * x, torch.tensor([0.1, 0.2, 2.0]))
    with pytest.raises(SolverFailed, match=r"row 2: bogacki_shampine5 .* at t = 0\.5\d*, step .*, error estimate"):
        Adaptive(1e-5).solve(bursting, torch.ones(3, 1), 0.0, 1.0)
    with pytest.raises(SolverFailed, match=r"row 1: .*did not finish in 20 steps"):
        Adaptive(1e-9, max_steps=20).solve(Plain(lambda t, x, r: r * x, torch.tensor([0.1, 60.0])), torch.ones(2, 1), 0.0, 1.0)
    broken = Plain(lambda t, x, rate: torch.where(t > 0.5, torch.nan, x))
    with pytest.raises(SolverFailed, match="the velocity is not finite"):
        Adaptive(1e-3).solve(broken, torch.ones(2, 1), 0.0, 1.0)


def test_arguments_are_checked() -> None:
    with pytest.raises(UserError, match="adaptive ones are"):
        Adaptive(method="rk4")
    with pytest.raises(UserError, match="rtol=-1"):
        Adaptive(-1.0)
    with pytest.raises(UserError, match="first_step=0"):
        Adaptive(first_step=0.0)
    with pytest.raises(UserError, match="rising or falling"):
        Adaptive().trajectory(Plain(lambda t, x, rate: x), torch.ones(1, 1), [0.0, 0.5, 0.2])
    with pytest.raises(UserError, match="no interpolant"):
        Adaptive(method="heun").trajectory(Plain(lambda t, x, rate: x), torch.ones(1, 1), [0.0, 0.5])
    with pytest.raises(UserError, match="unknown method"):
        FixedStep(method="rk17")


def test_a_stochastic_trace_keeps_its_probes_when_rows_leave() -> None:
    """The last rows of an adaptive solve have the estimate they would have alone."""
    network = GaussianMixtureVelocity([[1.5, 0.0, 0.0], [-1.0, 0.5, 2.0]], [0.05, 0.9])
    flow = TransportFlow(3, network=network, stepper=Adaptive(1e-5), divergence=Hutchinson(4, seed=3))
    x = torch.cat((torch.randn(20, 3), torch.tensor([[1.5, 0.02, 0.0]])))
    with torch.no_grad():
        whole, alone = flow.log_density(x), flow.log_density(x[20:])
    torch.testing.assert_close(whole.value[20:], alone.value)
    torch.testing.assert_close(whole.standard_error[20:], alone.standard_error)  # type: ignore[index]


@pytest.mark.slow
def test_fixed_sampler_compiles_without_a_break() -> None:
    torch.set_default_dtype(torch.float32)
    flow = TransportFlow(2, network={"hidden": (8, 8)}, stepper=FixedStep(3))
    field = flow.field()
    sample = torch.compile(lambda x: flow.stepper.solve(field, x, 0.0, 1.0).x, fullgraph=True)
    x = torch.randn(5, 2)
    with torch.no_grad():
        torch.testing.assert_close(sample(x), flow.stepper.solve(field, x, 0.0, 1.0).x, rtol=1e-4, atol=1e-5)
