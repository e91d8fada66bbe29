"""Few-step objectives and two-time maps against the closed-form average velocity of a Gaussian pair."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import nn

import sciflow
from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.alpha_flow import AlphaFlow
from sciflow.transport.objectives.consistency import ConsistencyFlowMatching
from sciflow.transport.objectives.flow_map import FlowMapObjective, average, derivative
from sciflow.transport.objectives.flow_map_distillation import FlowMapDistillation
from sciflow.transport.objectives.local_flow_matching import LocalFlow, LocalFlowMatching, fit_local
from sciflow.transport.objectives.mean_flow import MeanFlow
from sciflow.transport.objectives.piecewise import PiecewiseReflow
from sciflow.transport.objectives.reflow import Reflow
from sciflow.transport.objectives.split_mean_flow import SplitMeanFlow
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.paths.schedules import VariancePreserving
from sciflow.transport.reflow import reflow_pairs
from sciflow.transport.steppers.fixed import FixedStep
from sciflow.transport.steppers.map_step import MapStep
from sciflow.transport.times import UShaped

from .average import GaussianAverage


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def _exact() -> TransportFlow:
    return TransportFlow(2, network=GaussianAverage(), stepper=MapStep()).double()


def _finished(objective: FlowMapObjective) -> FlowMapObjective:
    if isinstance(objective, AlphaFlow):
        for _ in range(objective.end):
            objective.after_step()
    return objective


MAPS = {
    "mean flow": MeanFlow,
    "mean flow by differences": lambda **o: MeanFlow(step=1e-4, **o),
    "split mean flow": SplitMeanFlow,
    "alpha flow at its end": lambda **o: _finished(AlphaFlow(0, 10, **o)),
    "lagrangian": lambda **o: FlowMapDistillation("lagrangian", **o),
    "eulerian": lambda **o: FlowMapDistillation("eulerian", **o),
}


@pytest.mark.parametrize("steps", [1, 3, (0.0, 0.1, 0.7, 1.0)])
def test_one_jump_of_the_exact_map_is_the_flow(steps) -> None:
    flow = _exact()
    z = torch.randn(50, 2, dtype=torch.float64)
    jumped = flow.sampling(stepper=MapStep(steps)).solve(z, None, None, 0.0, 1.0, density=False)
    torch.testing.assert_close(jumped.x, flow.network.mean + flow.network.sigma * z)
    assert jumped.evaluations == (steps if isinstance(steps, int) else len(steps) - 1)
    with torch.no_grad():  # the diagonal is the velocity of the same flow
        followed = flow.sampling(stepper=FixedStep(50, method="rk4"))().sample((0,)).shape
        x = flow.sampling(stepper=FixedStep(50, method="rk4")).solve(z, None, None, 0.0, 1.0, density=False).x
    assert followed == (0, 2)
    torch.testing.assert_close(x, jumped.x, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", MAPS)
def test_identities_hold_on_the_exact_average_velocity(name: str) -> None:
    """With the marginal velocity in the place of the conditional one every residual is 0: the target is u itself."""
    flow, objective = _exact(), MAPS[name]()
    t = torch.rand(500, dtype=torch.float64)
    s = t + (1 - t) * torch.rand(500, dtype=torch.float64)
    x = torch.randn(500, 2, dtype=torch.float64) * 2
    pair = Pair(x, x)
    u = average(flow, pair, x, t, s)
    bridge = Bridge(pair, t, x, average(flow, pair, x, t, t))
    residual = objective.residual(flow, bridge, s, u)
    assert residual.abs().max() < (1e-5 if objective.step else 1e-8)
    nn.init.normal_(flow.network.off[2].weight, std=0.5)
    assert objective.residual(flow, bridge, s, average(flow, pair, x, t, s)).square().mean().sqrt() > 1e-2


@pytest.mark.parametrize(("name", "power"), [*((name, 0.0) for name in MAPS), ("mean flow", 1.0), ("split mean flow", 0.5)])
def test_no_gradient_at_the_exact_average_velocity(name: str, power: float) -> None:
    """E grad = 0 with conditional velocities: 18 mean gradients over 50 batches within 6 standard errors (false alarms
    5e-6 per case); off by 0.2 they are beyond 8. With the adaptive weight it holds as the targets are symmetric."""
    flow, objective = _exact(), MAPS[name](power=power)
    network = flow.network

    def pulls() -> torch.Tensor:
        gradients = []
        for _ in range(50):
            x = network.mean + network.sigma * torch.randn(200, 2, dtype=torch.float64)
            loss = objective(flow, Batch(x)).mean()
            parts = torch.autograd.grad(loss, [network.off[2].weight, network.off[2].bias])
            gradients.append(torch.cat([p.reshape(-1) for p in parts]))
        found = torch.stack(gradients)
        return found.mean(0) / (found.std(0) / math.sqrt(len(found)))

    assert pulls().abs().max() < 6
    nn.init.constant_(network.off[2].bias, 0.2)
    assert pulls().abs().max() > 8


@pytest.mark.parametrize("name", [name for name in MAPS if "differences" not in name])
@pytest.mark.parametrize("last", [0.0, 0.6, 1.0])
def test_a_teacher_takes_the_variance_away(name: str, last: float) -> None:
    """With the exact velocity from a teacher not only the mean gradient but the loss itself is 0 at the exact average."""
    flow = _exact()
    x = flow.network.mean + flow.network.sigma * torch.randn(300, 2, dtype=torch.float64)
    objective = MAPS[name](teacher=_exact(), last=last)
    assert objective(flow, Batch(x)).max() < 1e-12
    assert MAPS[name](last=last)(flow, Batch(x)).mean() > 1e-2
    nn.init.constant_(flow.network.off[2].bias, 0.2)
    assert objective(flow, Batch(x)).mean() > 1e-3
    assert not any(weight.requires_grad for weight in objective.parameters())
    assert not objective.train().teacher.training


def test_a_teacher_may_have_one_time_and_sees_the_condition() -> None:
    """A row's velocity is what the teacher's own field says under that row's condition."""
    teacher = TransportFlow(2, {"a": 1, "b": 2}, network={"hidden": (8,)})
    student = TransportFlow(2, {"a": 1, "b": 2}, network={"hidden": (8,), "two_time": True})
    condition = {"a": torch.randn(20, 1), "b": torch.randn(20, 2)}
    x, t = torch.randn(20, 2), torch.rand(20)
    bridge = Bridge(Pair(x, x, condition, None, None, student.encoder(condition)), t, x, torch.randn(20, 2))
    objective = MeanFlow(teacher=teacher)
    expected = teacher.field(teacher.encoder(condition))(t, x)
    torch.testing.assert_close(objective.taught(student, bridge), expected.detach())
    assert set(objective.state_dict()) == {f"teacher.{name}" for name in teacher.state_dict()}
    assert objective(student, Batch(x, condition)).isfinite().all()


class _Times(MeanFlow):
    def residual(self, flow, bridge, s, u):
        self.seen = bridge.t, s
        return super().residual(flow, bridge, s, u)


@pytest.mark.parametrize(("last", "far"), [(0.0, 0), (0.25, 20), (1.0, 80)])
def test_the_last_part_of_the_jumps_ends_at_one(last: float, far: int) -> None:
    objective = _Times(ratio=0.8, last=last)
    objective(_exact(), Batch(torch.randn(100, 2, dtype=torch.float64)))
    t, s = objective.seen
    assert len(s) == 80 and bool((t < s).all()) and bool((s[:far] == 1).all()) and bool((s[far:] < 1).all())


def test_alpha_flow_goes_from_the_velocity_to_mean_flow() -> None:
    flow, objective = _exact(), AlphaFlow(100, 300)
    flow.train()
    x = torch.randn(64, 2, dtype=torch.float64)
    bridge = Bridge(Pair(x, x), torch.full((64,), 0.2).double(), x, torch.randn_like(x))
    s = torch.full((64,), 0.9).double()
    alphas = []
    for step in range(301):
        alphas.append(objective.alpha)
        if step in (0, 200, 203, 300):
            target = objective.target(flow, bridge, s)
            if alphas[-1] == 1:
                torch.testing.assert_close(target, bridge.ut)
            elif alphas[-1] == 0:
                torch.testing.assert_close(target, MeanFlow().target(flow, bridge, s))
            else:  # the gradient is that of the loss as the paper writes it
                alpha, u = alphas[-1], average(flow, bridge.pair, x, bridge.t, s)
                y = x + alpha * 0.7 * bridge.ut
                with torch.no_grad():
                    later = average(flow, bridge.pair, y, bridge.t + alpha * 0.7, s)
                written = (u - alpha * bridge.ut - (1 - alpha) * later).square().sum() / alpha
                weight = flow.network.off[2].weight
                (a,) = torch.autograd.grad(written, weight, retain_graph=True)
                (b,) = torch.autograd.grad((u - target).square().sum(), weight)
                torch.testing.assert_close(a, b)
        objective.after_step()
    assert alphas[0] == 1 and alphas[200] == 0.5 and alphas[-1] == 0 and alphas == sorted(alphas, reverse=True)
    loaded = AlphaFlow(100, 300)
    loaded.load_state_dict(objective.state_dict())
    assert loaded.alpha == objective.alpha and int(loaded.steps) == 301


class _Attention(TimeNetwork):
    """Tokens (N, d) that look at each other through the fused kernel."""

    two_time = True

    def __init__(self) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels = torch.Size((4, 3)), 1, 1
        self.enter, self.leave = nn.Linear(3 + 2 + 1, 24), nn.Linear(8, 3)

    def forward(self, x, t, context=None, mask=None, s=None):
        columns = [x, *(c.reshape(-1, 1, 1).expand(len(x), 4, 1).to(x) for c in (t, s, context))]
        q, k, v = self.enter(torch.cat(columns, 2)).unsqueeze(1).chunk(3, 3)
        return self.leave(nn.functional.scaled_dot_product_attention(q, k, v).squeeze(1)).unsqueeze(1)


@pytest.mark.parametrize("activation", ["silu", "relu", "gelu", "elu", "tanh"])
def test_derivatives_of_both_kinds_agree(activation: str) -> None:
    flow = TransportFlow((2, 3), 1, network={"hidden": (16, 16), "two_time": True, "activation": activation}).double()
    _derivatives_agree(flow, (2, 3))


def test_attention_has_forward_derivatives() -> None:
    _derivatives_agree(TransportFlow((4, 3), 1, network=_Attention()).double(), (4, 3))


def _derivatives_agree(flow: TransportFlow, shape: tuple[int, ...]) -> None:
    x, context = torch.randn(7, *shape, dtype=torch.float64), torch.randn(7, 1, dtype=torch.float64)
    t = torch.rand(7, dtype=torch.float64)
    bridge = Bridge(Pair(x, x, context=context), t, x, torch.randn_like(x))
    for options in ({"dx": bridge.ut, "dt": 1.0}, {"ds": 1.0}):
        exact = derivative(flow, bridge, t + 0.1, **options)
        torch.testing.assert_close(exact, derivative(flow, bridge, t + 0.1, step=1e-6, **options), atol=1e-6, rtol=1e-6)


OBJECTIVES = {
    **MAPS,
    "alpha flow": lambda **o: AlphaFlow(0, 8, **o),
    "consistency": lambda **o: ConsistencyFlowMatching(gap=0.1, decay=0.9, **o),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("precision", [None, "bf16"])
def test_trains_conditions_masks_and_images(name: str, precision: str | None) -> None:
    two_time = name != "consistency"
    flow = TransportFlow(
        (1, 3, 3), {"a": 1, "b": 2}, network={"hidden": (16,), "two_time": two_time}, unconditional=True, maskable=True
    )
    x = torch.randn(96, 1, 3, 3)
    condition = {"a": torch.randn(96, 1), "b": torch.randn(96, 2)}
    mask = torch.rand(96, 1, 3, 3) < 0.7
    before = {key: value.detach().clone() for key, value in flow.named_parameters()}
    objective = OBJECTIVES[name](drop_condition=0.3)
    result = sciflow.fit(
        flow, {"x": x, "condition": condition, "mask": mask}, objective=objective, epochs=3, batch_size=40, precision=precision,
        validation=0.2, progress=False,
    )  # fmt: skip
    assert all(math.isfinite(record["loss"]) for record in result.history)
    changed = {key for key, value in flow.named_parameters() if not torch.equal(value, before[key])}
    assert changed == set(before)
    stepper = MapStep(2) if two_time else FixedStep(2, method="euler")
    draws = flow.sampling(stepper=stepper)({"a": torch.zeros(5, 1), "b": torch.zeros(5, 2)}, mask[:5]).sample()
    assert draws.shape == (5, 1, 3, 3) and bool((draws[~mask[:5]] == 0).all())


@pytest.mark.parametrize("name", ["alpha flow", "consistency"])
def test_resumed_trainings_go_on(name: str, tmp_path) -> None:
    """Counters and teachers are in the checkpoint: 2 + 2 epochs are bit for bit 4."""
    x = torch.randn(64, 2)

    def trained(epochs: int, **options) -> TransportFlow:
        torch.manual_seed(1)
        flow = TransportFlow(2, network={"hidden": (8,), "two_time": name != "consistency"})
        sciflow.fit(
            flow, x, objective=OBJECTIVES[name](), epochs=epochs, batch_size=32, schedule="constant", validation=0,
            progress=False, **options,
        )  # fmt: skip
        return flow

    whole = trained(4)
    trained(2, checkpoint=tmp_path)
    resumed = trained(4, checkpoint=tmp_path, resume=True)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), resumed.parameters(), strict=True))


def test_the_teacher_is_a_moving_average() -> None:
    flow = TransportFlow(2, network={"hidden": (8,)})
    objective = ConsistencyFlowMatching(decay=0.75)
    objective(flow, Batch(torch.randn(8, 2)))
    old = [p.detach().clone() for p in flow.parameters()]
    with torch.no_grad():
        for p in flow.parameters():
            p.add_(1.0)
    objective.after_step()
    expected = torch.cat([(p + 0.25).reshape(-1) for p in old])
    torch.testing.assert_close(objective.teacher.weights, expected)
    assert not any(p.requires_grad for p in objective.parameters())


def test_consistency_as_published_is_the_rescaled_loss_times_the_square_of_what_is_left() -> None:
    flow, x = TransportFlow(2, network={"hidden": (8,)}), torch.randn(50, 2)
    t = torch.rand(50)
    bridge = flow.path(Pair(torch.randn(50, 2), x), t, flow.space)
    losses = [ConsistencyFlowMatching(2, strength=0.0, rescaled=rescaled).loss(flow, bridge) for rescaled in (False, True)]
    left = ((2 * t).floor() + 1) / 2 - t
    torch.testing.assert_close(losses[0], losses[1] * left**2)


class _Shift(TimeNetwork):
    """The constant velocity of a straight shift."""

    def __init__(self, value: float = 0.7) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels = torch.Size((2,)), 0, 1
        self.value = nn.Parameter(torch.tensor(value))

    def forward(self, x, t, context=None, mask=None, s=None):
        return self.value.expand(x.shape).unsqueeze(1)


@pytest.mark.parametrize(
    "objective",
    [ConsistencyFlowMatching(strength=1.0), Reflow(), Reflow(huber=None), PiecewiseReflow(TransportFlow(2, network=_Shift()))],
    ids=["consistency", "reflow", "reflow without huber", "piecewise"],
)
def test_straight_objectives_vanish_on_a_shift(objective) -> None:
    source = torch.randn(100, 2)
    batch = Batch(source + 0.7, source=source)
    assert objective(TransportFlow(2, network=_Shift()), batch).abs().max() < 1e-6
    assert copy.deepcopy(objective)(TransportFlow(2, network=_Shift(0.8)), batch).mean() > 1e-4


def test_u_shaped_times_have_their_density() -> None:
    """Kolmogorov distance of 20000 draws from the distribution function; false alarms 1e-4."""
    t, weight = UShaped(4.0)(20000, torch.zeros(0, dtype=torch.float64))
    assert weight is None
    t = t.sort().values
    grid = torch.linspace(0, 1, 20001, dtype=torch.float64)
    density = torch.exp(4 * (grid - 0.5)) + torch.exp(-4 * (grid - 0.5))
    cumulative = torch.cumulative_trapezoid(density, grid)
    expected = torch.cat([torch.zeros(1).double(), cumulative / cumulative[-1]])[(t * 20000).round().long()]
    found = torch.arange(1, 20001).double() / 20000
    assert (found - expected).abs().max() < 2.23 / 20000**0.5


def test_reflow_pairs_are_joined_by_the_flow() -> None:
    flow = TransportFlow(2, {"c": 1}, network={"hidden": (8,)}, stepper=FixedStep(8))
    condition = {"c": torch.randn(10, 1)}
    batch = reflow_pairs(flow, 25, condition, seed=3)
    assert batch.source is not None and batch.condition["c"].shape == (25, 1)
    torch.testing.assert_close(batch.condition["c"][10:20], condition["c"])
    torch.testing.assert_close(flow(batch.condition).data(batch.source), batch.x)
    chunked = reflow_pairs(flow, 25, condition, seed=3, chunk=4)
    assert torch.equal(chunked.source, batch.source)
    torch.testing.assert_close(chunked.x, batch.x)
    back = reflow_pairs(flow, condition=batch.condition, x=batch.x, stepper=FixedStep(50))
    torch.testing.assert_close(back.source, batch.source, atol=1e-3, rtol=0)
    with pytest.raises(UserError, match="how many"):
        reflow_pairs(TransportFlow(2, network={"hidden": (8,)}))


class _Windowed(TimeNetwork):
    """Knows its window: what is learned jumps from one to the next."""

    def __init__(self, windows: int) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels, self.windows = torch.Size((2,)), 0, 1, windows
        self.net = nn.Sequential(nn.Linear(3 + windows, 48), nn.SiLU(), nn.Linear(48, 48), nn.SiLU(), nn.Linear(48, 2))

    def forward(self, x, t, context=None, mask=None, s=None):
        number = (t * self.windows + 1e-6).floor().clamp_max(self.windows - 1).long()
        window = nn.functional.one_hot(number, self.windows).to(x)
        return self.net(torch.cat([x, t.unsqueeze(1), window], 1)).unsqueeze(1)


@pytest.mark.parametrize("windows", [1, 3])
def test_windows_of_the_exact_flow_join_their_ends(windows: int) -> None:
    """Trajectories of the exact Gaussian flow do not cross: as many Euler steps as windows arrive, the teacher's do not."""
    teacher = TransportFlow(2, network=GaussianAverage((0.5, 0.0)), stepper=FixedStep(20)).double()
    student = TransportFlow(2, network=_Windowed(windows)).double()
    x = teacher.network.mean + 0.5 * torch.randn(2000, 2, dtype=torch.float64)
    sciflow.fit(
        student, x, objective=PiecewiseReflow(teacher, windows), epochs=40, batch_size=250, learning_rate=5e-3, validation=0,
        progress=False,
    )  # fmt: skip
    z = torch.randn(500, 2, dtype=torch.float64)
    few = FixedStep(windows, method="euler")
    with torch.no_grad():
        errors = [
            (flow.sampling(stepper=few).solve(z, None, None, 0.0, 1.0, density=False).x - teacher.network.mean - 0.5 * z)
            .square().mean().sqrt() for flow in (student, teacher)
        ]  # fmt: skip
    assert errors[0] < 0.6 * errors[1]


def test_local_flow_learns_a_condition_and_its_density() -> None:
    flow = LocalFlow(2, 1, decays=(0.6, 0.0), block={"network": {"hidden": (48, 48)}, "stepper": FixedStep(6)})
    condition = torch.rand(3000, 1)
    x = condition + 0.5 * torch.randn(3000, 2)
    results = fit_local(flow, (x, condition), epochs=20, batch_size=250, learning_rate=5e-3, validation=0, progress=False)
    assert len(results) == 2
    with torch.no_grad():
        given = flow(torch.tensor([0.8]))
        draws, log_prob = given.rsample_and_log_prob((2000,))
        assert (draws.mean(0) - 0.8).abs().max() < 0.1 and (draws.std(0) - 0.5).abs().max() < 0.08
        exact = torch.distributions.Normal(0.8, 0.5).log_prob(draws).sum(1)
        assert (log_prob - exact).mean().abs() < 0.05
        torch.testing.assert_close(given.log_prob(draws), log_prob, atol=0.2, rtol=0)  # six midpoint steps each way
    with pytest.raises(UserError, match="last one is 0"):
        LocalFlow(2, decays=(0.5,))
    with pytest.raises(UserError, match="decay=1"):
        LocalFlowMatching(1.0)


def test_refusals() -> None:
    one_time = TransportFlow(2, network={"hidden": (8,)})
    two_time = TransportFlow(2, network={"hidden": (8,), "two_time": True}, stepper=MapStep())
    batch = Batch(torch.randn(8, 2))
    with pytest.raises(UserError, match="two_time=True"):
        MeanFlow()(one_time, batch)
    with pytest.raises(UserError, match="two_time=True"):
        one_time.sampling(stepper=MapStep())().sample((2,))
    with pytest.raises(UserError, match="no density"):
        two_time().log_prob(batch.x)
    with pytest.raises(UserError, match="forwards only"):
        two_time.solve(batch.x, None, None, 1.0, 0.0, density=False)
    with pytest.raises(UserError, match="reflow_pairs"):
        Reflow()(one_time, batch)
    for build, message in (
        (lambda: MapStep(0), "positive number"),
        (lambda: MapStep((0.0, 0.5, 0.5, 1.0)), "increase from 0 to 1"),
        (lambda: MeanFlow(ratio=0.0), "ratio"),
        (lambda: MeanFlow(step=-1.0), "time step"),
        (lambda: MeanFlow(last=1.5), "last"),
        (lambda: MeanFlow(teacher=one_time, drop_condition=0.1), "without dropping"),
        (lambda: MeanFlow(teacher=TransportFlow(2, path=VariancePreserving()))(two_time, batch), "teacher's path"),
        (lambda: AlphaFlow(5, 5), "positive number of steps"),
        (lambda: FlowMapDistillation("newton"), "lagrangian, eulerian"),
        (lambda: ConsistencyFlowMatching(2, gap=0.6), "gap"),
        (lambda: PiecewiseReflow(one_time, 0), "windows"),
        (lambda: UShaped(0.0), "steepness"),
    ):
        with pytest.raises(UserError, match=message):
            build()


def test_saved_flows_jump_alike(tmp_path) -> None:
    flow = TransportFlow(2, network={"hidden": (8,), "two_time": True}, stepper=MapStep((0.0, 0.4, 1.0)))
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    z = torch.randn(5, 2)
    assert torch.equal(loaded().data(z) if loaded.stepper.density else loaded.from_base(z, None, None, density=False)[0],
                       flow.from_base(z, None, None, density=False)[0])  # fmt: skip
