"""The training loop against closed forms and against loops written out by hand."""

from __future__ import annotations

import io
import itertools
import math
from typing import Any

import pytest
import torch
import zuko
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, MaximumLikelihood, MovingAverage, Objective, Schedule, TrainingDiverged, fit


class Gaussian(nn.Module):
    """N(loc + slope * c, scale^2) in one dimension; the condition may be missing or a nested dict."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.zeros(1, dtype=dtype))
        self.slope = nn.Parameter(torch.zeros(1, 1, dtype=dtype))
        self.log_scale = nn.Parameter(torch.zeros(1, dtype=dtype))

    def forward(self, condition: Any = None, mask: Any = None) -> torch.distributions.Distribution:
        if isinstance(condition, dict):
            condition = condition["detector"]["pt"]
        loc = self.loc + (0 if condition is None else condition @ self.slope)
        normal = torch.distributions.Normal(loc, self.log_scale.exp().expand_as(loc))
        return torch.distributions.Independent(normal, 1)


def rows(count: int, *, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    condition = torch.randn(count, 1, generator=generator, dtype=dtype)
    return 1 + 2 * condition + 0.5 * torch.randn(count, 1, generator=generator, dtype=dtype), condition


def weights(flow: nn.Module) -> Tensor:
    return torch.cat([p.detach().flatten() for p in flow.parameters()])


QUIET: dict[str, Any] = {"progress": False, "validation": 0}


def test_equals_a_loop_written_out() -> None:
    """Bit for bit: AdamW, cosine schedule, decay on matrices only, clipping, weights, EMA, a last partial batch."""
    x, condition = rows(100)
    weight = torch.linspace(0.5, 1.5, 100, dtype=torch.float64)
    flow, own = Gaussian(), Gaussian()
    result = fit(
        flow,
        (x, condition, weight),
        epochs=4,
        batch_size=32,
        learning_rate=0.1,
        weight_decay=0.3,
        clip=0.7,
        ema=0.8,
        seed=5,
        **QUIET,
    )
    groups = [{"params": [own.slope], "weight_decay": 0.3}, {"params": [own.loc, own.log_scale], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, fused=True)
    average, step = weights(own), 0
    losses = []
    for epoch in range(4):
        order = torch.randperm(100, generator=torch.Generator().manual_seed(5 * 1_000_003 + epoch))
        sums = torch.zeros(2, dtype=torch.float64)
        for batch in order.split(32):
            for group in optimiser.param_groups:
                group["lr"] = 0.1 * 0.5 * (1 + math.cos(math.pi * step / 16))
            loss = -(own(condition[batch]).log_prob(x[batch]) * weight[batch]).sum()
            sums += torch.stack([loss.detach(), weight[batch].sum()])
            optimiser.zero_grad()
            (loss / weight[batch].sum()).backward()
            torch.nn.utils.clip_grad_norm_(own.parameters(), 0.7)
            optimiser.step()
            decay = min(0.8, (1 + step) / (10 + step))
            average = decay * average + (1 - decay) * weights(own)
            step += 1
        losses.append(float(sums[0] / sums[1]))
    torch.testing.assert_close(weights(flow), average, rtol=0, atol=1e-14)
    assert [record["loss"] for record in result.history] == pytest.approx(losses, abs=1e-13)
    assert (result.steps, result.best_epoch, result.reason) == (16, 4, "all epochs done")
    assert not flow.training


def test_linear_regression_is_recovered() -> None:
    """Maximum likelihood of a Gaussian linear model is least squares."""
    x, condition = rows(2000)
    flow = Gaussian()
    fit(flow, {"x": x, "condition": {"detector": {"pt": condition}}}, epochs=60, batch_size=500, learning_rate=0.05, **QUIET)
    design = torch.cat([torch.ones_like(condition), condition], 1)
    solution = torch.linalg.lstsq(design, x).solution[:, 0]
    scale = (x[:, 0] - design @ solution).square().mean().sqrt()
    found = torch.stack([flow.loc[0], flow.slope[0, 0], flow.log_scale.exp()[0]])
    torch.testing.assert_close(found.detach(), torch.stack([*solution, scale]), rtol=0, atol=2e-3)


def test_integer_weights_are_repetitions() -> None:
    x, condition = rows(50)
    count = torch.arange(50) % 3
    weighted, repeated = Gaussian(), Gaussian()
    fit(weighted, (x, condition, count.double()), epochs=20, batch_size=50, learning_rate=0.05, **QUIET)
    again = x.repeat_interleave(count, 0), condition.repeat_interleave(count, 0)
    fit(repeated, again, epochs=20, batch_size=len(again[0]), learning_rate=0.05, **QUIET)
    torch.testing.assert_close(weights(weighted), weights(repeated), rtol=0, atol=1e-10)


def test_signed_weights_subtract() -> None:
    """Background at 4 enters once with +1 and once with -1: the fit sees the weighted moments, in small batches too."""
    generator = torch.Generator().manual_seed(1)
    signal = torch.randn(3000, 1, generator=generator, dtype=torch.float64)
    background = 4 + torch.randn(2, 600, 1, generator=generator, dtype=torch.float64)
    x = torch.cat([signal, *background])
    weight = torch.cat([torch.ones(3600), -torch.ones(600)]).double()
    flow = Gaussian()
    fit(flow, (x, None, weight), epochs=40, batch_size=700, learning_rate=0.03, **QUIET)
    mean = (weight @ x) / weight.sum()
    variance = (weight @ (x - mean).square()) / weight.sum()
    assert flow.loc.item() == pytest.approx(mean.item(), abs=0.01)
    assert flow.log_scale.exp().item() == pytest.approx(variance.sqrt().item(), abs=0.01)


def test_early_stopping_restores_the_best_weights() -> None:
    """Trained at N(1, .) and validated at N(0, .): the validation loss rises from the first epoch on."""
    x = torch.randn(400, 1, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    flow = Gaussian()
    seen: list[float] = []

    def watch(record: dict[str, Any]) -> None:
        seen.append(flow.loc.item())

    result = fit(flow, x * 0.1 + 1, validation=x, epochs=50, batch_size=100, patience=3, progress=False, callbacks=[watch])
    assert (result.reason, result.best_epoch, len(result.history)) == ("early stopping", 1, 4)
    assert flow.loc.item() == seen[0]
    expected = -flow().log_prob(x).mean().item()
    assert result.best_validation_loss == pytest.approx(expected, abs=1e-12)
    assert result.history[0]["validation_loss"] == result.best_validation_loss
    assert "4 epochs" in repr(result) and "epoch 1" in repr(result)


def test_what_is_validated_and_kept_is_the_average() -> None:
    x, condition = rows(200)
    flow = Gaussian()
    result = fit(
        flow, (x, condition), validation=(x, condition), epochs=2, batch_size=50, learning_rate=0.1, ema=0.9, progress=False
    )
    loss = -flow(condition).log_prob(x).mean().item()
    assert result.history[-1]["validation_loss"] == pytest.approx(loss, abs=1e-12)


def test_seed_decides_and_the_global_generator_is_left_alone() -> None:
    data = rows(200)

    class Smeared(MaximumLikelihood):
        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            return super().forward(flow, batch._replace(x=batch.x + torch.randn_like(batch.x)))

    found = []
    for seed in (0, 0, 1):
        torch.rand(seed + 3)
        flow = Gaussian()
        torch.manual_seed(9)
        fit(flow, data, objective=Smeared(), epochs=2, batch_size=64, seed=seed, progress=False)
        assert torch.equal(torch.rand(1), torch.rand(1, generator=torch.Generator().manual_seed(9)))
        found.append(weights(flow))
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


def test_plain_zuko_flow_trains() -> None:
    """A two-moon-like ridge: the likelihood beats that of the best Gaussian."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(2000, 2, generator=generator)
    x = torch.stack([z[:, 0], z[:, 0].square() + 0.3 * z[:, 1]], 1)
    torch.manual_seed(0)
    flow = zuko.flows.NSF(2, transforms=2, hidden_features=(32, 32))
    result = fit(flow, x, epochs=15, batch_size=256, learning_rate=1e-2, patience=10, progress=False)
    gaussian = 0.5 * torch.logdet(2 * math.pi * math.e * x.T.cov()).item()
    truth = math.log(2 * math.pi * math.e) + math.log(0.3)
    assert result.best_validation_loss is not None
    assert truth - 0.15 < result.best_validation_loss < gaussian - 0.4


def test_float64_data_meet_a_float32_flow_and_bfloat16_autocast() -> None:
    x, condition = rows(500)
    plain, autocast = Gaussian(torch.float32), Gaussian(torch.float32)
    options: dict[str, Any] = {"epochs": 10, "batch_size": 100, "learning_rate": 0.05, **QUIET}
    fit(plain, (x, condition), **options)
    fit(autocast, (x, condition), precision="bf16", **options)
    assert autocast.slope.dtype == torch.float32
    assert 0 < (weights(plain) - weights(autocast)).abs().max() < 0.02


def test_masks_and_indices_reach_the_objective_and_dequantisation_happens_once() -> None:
    seen: list[Batch] = []

    class Spy(Objective):
        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            seen.append(batch)
            return batch.x.sum(-1) * flow.loc

    class Quantised(Gaussian):
        calls = 0

        def dequantise(self, x: Tensor, index: Tensor, mask: Tensor | None = None) -> Tensor:
            self.calls += 1
            return x + index[:, None]

    flow = Quantised()
    mask = torch.tensor([[True], [False], [True]])
    event = torch.tensor([10, 20, 30])
    fit(flow, (torch.ones(3, 1), None, None, mask, event), objective=Spy(), epochs=2, batch_size=2, **QUIET)
    assert flow.calls == 1
    for batch in seen:
        assert batch.mask is not None and batch.index is not None
        assert torch.equal(batch.x, (batch.mask + batch.index[:, None]).to(batch.x.dtype))


def test_a_flow_over_physical_units_is_trained_on_dequantised_float64_rows() -> None:
    """The probability of the point mass is the mass of its band: the trained flow draws exact zeros at that rate.

    400 draws at P(0) = 0.4, six standard errors plus a margin for the short training: false alarms below 1e-6.
    """
    from sciflow.flows import NeuralSplineFlow, Preprocessed
    from sciflow.preprocessing import Column, Preprocessing

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 1, generator=generator, dtype=torch.float64).exp()
    x[torch.rand(2000, generator=generator) < 0.4] = 0.0
    preprocessing = Preprocessing([Column("iso", transform="log", point_mass=0.0)]).fit(x)
    torch.manual_seed(0)
    flow = Preprocessed(NeuralSplineFlow(1, transforms=2, bins=8, hidden=(16,), kind="autoregressive"), features=preprocessing)
    fit(flow, x, epochs=15, batch_size=250, learning_rate=1e-2, progress=False)
    torch.manual_seed(1)
    draws = preprocessing.quantise(flow().sample((400,)))
    assert (draws == 0).double().mean().item() == pytest.approx(0.4, abs=0.15 + 0.02)


def test_drop_last_and_callbacks() -> None:
    x, _ = rows(100)
    sizes: list[int] = []

    class Spy(MaximumLikelihood):
        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            sizes.append(len(batch.x))
            return super().forward(flow, batch)

    result = fit(
        Gaussian(), x, objective=Spy(), epochs=9, batch_size=30, drop_last=True, callbacks=[lambda r: r["epoch"] == 2], **QUIET
    )
    assert sizes == [30] * 6
    assert result.reason == "callback"


@pytest.mark.parametrize("where", ["loss", "gradient", "penalty", "validation", "weights"])
def test_divergence_is_told_and_the_best_weights_stay(where: str, tmp_path: Any) -> None:
    """NaN comes in the second epoch, from row 17."""

    class Broken(MaximumLikelihood):
        calls = 0

        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            losses = super().forward(flow, batch)
            self.calls += self.training
            assert batch.index is not None
            hit = batch.index == 17
            if where == "loss" and self.calls > 4:
                return torch.where(hit, torch.nan, losses)
            if where == "validation" and not self.training and self.calls > 4:
                return torch.where(batch.index == 80, torch.inf, losses)
            if where in ("gradient", "weights") and self.calls > 4:
                return losses + torch.where(hit, (flow.loc * 0).abs().sqrt(), torch.zeros_like(losses))  # 0, slope NaN
            return losses

        def penalty(self, flow: nn.Module, batch: Batch) -> Tensor | None:
            return flow.loc.sum() * torch.nan if where == "penalty" and self.calls > 4 else None

    x, _ = rows(100)
    flow = Gaussian()
    kept: list[Tensor] = []
    validation: Any = (x, None, None, None, torch.arange(100)) if where == "validation" else 0
    with pytest.raises(TrainingDiverged) as caught:
        fit(
            flow, x, objective=Broken(), validation=validation, epochs=3, batch_size=25, learning_rate=0.01,
            checkpoint=tmp_path, clip=None if where == "weights" else 1.0, progress=False,
            callbacks=[lambda record: kept.append(weights(flow))],
        )  # fmt: skip
    error = caught.value
    assert error.epoch == 2 and 4 <= error.step < 8 and 0 < error.learning_rate <= 0.01
    assert torch.equal(weights(flow), kept[-1])
    assert not flow.training
    assert error.checkpoint == str(tmp_path / "checkpoint.safetensors")
    if where in ("loss", "validation"):
        assert error.rows == [17 if where == "loss" else 80]
    else:
        assert len(error.rows) == 25
        assert 17 in error.rows or where == "penalty"
    assert f"at step {error.step} (epoch 2, learning rate" in str(error) and "last good checkpoint" in str(error)
    assert isinstance(error, UserError) and "\n" not in str(error)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs=0: give a positive integer"),
        ({"epochs": True}, "epochs=True: give a positive integer"),
        ({"checkpoint_epochs": 0}, "checkpoint_epochs=0: give a positive integer"),
        ({"warmup": -3}, "warmup=-3"),
        ({"precision": "bf16"}, r"weights are torch.float64: autocast needs a float32 flow"),
        ({"patience": 3, "validation": 0}, "patience=3 needs a validation set"),
        ({"groups": torch.arange(20), "validation": rows(5)[0]}, "but validation is a data set"),
        ({"learning_rate": 0.0}, "learning_rate=0.0"),
        ({"precision": "int8"}, "precision='int8' is unknown"),
        ({"precision": "float32"}, r"weights are torch.float64: convert the flow"),
        ({"schedule": "linear"}, "schedule='linear' is unknown: choose"),
        ({"ema": 1.5}, "ema=1.5 is no decay"),
        ({"patience": 0}, "patience=0"),
        ({"validation": 1.5}, "validation=1.5 is no fraction"),
    ],
)
def test_arguments_are_checked(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit(Gaussian(), rows(20)[0], **({"epochs": 1, "progress": False} | options))


def test_integers_are_numbers_and_seeds_are_integers() -> None:
    rows = torch.randint(0, 5, (64, 2), generator=torch.Generator().manual_seed(0))
    flow = zuko.flows.MAF(2, transforms=1, hidden_features=(4,))
    assert fit(flow, rows, epochs=1, batch_size=32, progress=False).steps == 2
    for seed in (-1, 0.5, "1"):
        with pytest.raises(UserError, match="seed is"):
            fit(flow, rows, epochs=1, seed=seed, progress=False)  # type: ignore[arg-type]


def test_flows_without_values_are_refused() -> None:
    with pytest.raises(UserError, match="Gaussian is on the meta device"):
        fit(Gaussian().to("meta"), rows(20)[0], epochs=1, progress=False)


def test_a_number_too_large_for_the_flow_is_named_by_its_row() -> None:
    """It is finite in float64; the row is that of the data as they were given, not of the part it was split into."""
    x = rows(50)[0]
    x[41] = 1e300
    with pytest.raises(UserError, match=r"column 0 'mass' has 1 value that is not finite \(first in row 41\)"):
        fit(Gaussian(torch.float32), x, names=["mass"], validation=0.2, epochs=1, progress=False)


def test_an_objective_with_another_shape_is_refused() -> None:
    class Mean(MaximumLikelihood):
        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            return super().forward(flow, batch).mean()

    with pytest.raises(ValueError, match=r"Mean returned losses of shape \(\), expected one per example, \(18,\)"):
        fit(Gaussian(), rows(20)[0], objective=Mean(), progress=False)


def test_schedules() -> None:
    """Ends, peak and continuity of the shapes; the plateau halves after `patience` epochs without progress."""
    cycle = [Schedule(1.0, "onecycle", 1000).rate(step) for step in range(1000)]
    assert cycle[0] == pytest.approx(0.04) and max(cycle) == pytest.approx(1.0) and cycle.index(max(cycle)) == 300
    assert cycle[-1] < 2e-5
    assert max(abs(a - b) for a, b in itertools.pairwise(cycle)) < 0.01
    assert [Schedule(1.0, "constant", 9, warmup=4).rate(step) for step in range(5)] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert Schedule(2.0, lambda fraction: 1 - fraction, 4).rate(3) == 0.5
    plateau = Schedule(1.0, "plateau", 100, patience=2)
    for loss in (1.0, 0.9, 0.9, 0.9, 0.9):
        plateau.after_epoch(loss)
    assert plateau.rate(50) == 0.5
    copy = Schedule(1.0, "plateau", 100, patience=2)
    copy.restore(plateau.state())
    assert copy.state() == plateau.state()


def test_progress_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    x, condition = rows(200)
    fit(Gaussian(), (x, condition), epochs=2, batch_size=50)
    assert capfd.readouterr() == ("", "")
    screen = Terminal()
    monkeypatch.setattr("sys.stderr", screen)
    fit(Gaussian(), (x, condition), epochs=2, batch_size=50)
    text = screen.getvalue()
    assert "epoch 2/2" in text and "loss" in text and "validation" in text and "learning rate" in text
    shown = len(text)
    fit(Gaussian(), (x, condition), epochs=2, batch_size=50, progress=False)
    assert len(screen.getvalue()) == shown


def test_average_leaves_the_weights_as_they_were() -> None:
    flow = Gaussian()
    average = MovingAverage(flow, 0.5)
    with torch.no_grad():
        flow.loc.fill_(10.0)
    average.update(0)  # decay 1/10
    with average.applied():
        assert flow.loc.item() == pytest.approx(9.0)
    assert flow.loc.item() == 10.0


@pytest.mark.parametrize("clip", [None, 5.0])
@pytest.mark.parametrize("penalty", [False, True])
def test_the_device_is_waited_for_once_per_step(monkeypatch: pytest.MonkeyPatch, clip: float | None, penalty: bool) -> None:
    """Reads of tensors by Python, counted in trainings of 5 and of 25 steps."""
    from torch.utils._python_dispatch import TorchDispatchMode

    class Reads(TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            Reads.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    class Simple(MaximumLikelihood):
        def forward(self, flow: Any, batch: Batch) -> Tensor:  # torch's own distributions validate their arguments
            return ((batch.x - flow.loc) ** 2).sum(1)

        def penalty(self, flow: Any, batch: Batch) -> Tensor | None:
            return flow.loc.sum() ** 2 if penalty else None

    original = Tensor.tolist

    def tolist(tensor: Tensor) -> Any:
        Reads.count += 1
        return original(tensor)

    monkeypatch.setattr(Tensor, "tolist", tolist)
    found = []
    for size in (20, 4):
        Reads.count = 0
        with Reads():
            fit(Gaussian(), rows(100)[0], objective=Simple(), epochs=1, batch_size=size, clip=clip, ema=0.9, **QUIET)
        found.append(Reads.count)
    assert found[1] - found[0] == 20


@pytest.mark.parametrize("validation", [0, 0.3])
def test_rows_of_weight_zero_count_for_nothing_even_with_an_infinite_loss(validation: float) -> None:
    """-log(x - loc) is infinite with a gradient of NaN (0 / 0) in rows with x = 0."""

    class Barrier(MaximumLikelihood):
        def forward(self, flow: Any, batch: Batch) -> Tensor:
            distance = (batch.x[:, 0] * flow.log_scale.exp()).abs().sqrt()
            return distance - torch.log(distance)

    x, weight = rows(60)[0].abs() + 0.1, torch.ones(60, dtype=torch.float64)
    x[::3], weight[::3] = 0, 0
    options: dict[str, Any] = {"epochs": 2, "batch_size": 16, "progress": False, "validation": validation}
    flow = Gaussian()
    result = fit(flow, (x, None, weight), objective=Barrier(), **options)
    assert torch.isfinite(weights(flow)).all() and math.isfinite(result.history[-1]["loss"])
    assert validation or result.steps == 2 * 3  # 40 rows remain
    if not validation:
        other = Gaussian()
        fit(other, x[weight > 0], objective=Barrier(), **options)
        assert torch.allclose(weights(flow), weights(other), rtol=1e-12)


def test_a_loss_without_weight_is_no_loss() -> None:
    from sciflow.training.loss import LossModule

    class Infinite(MaximumLikelihood):
        def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
            return torch.where(batch.x[:, 0] == 0, torch.inf, batch.x[:, 0])

    module = LossModule(Gaussian(), Infinite())
    total, weight, _ = module(Batch(torch.tensor([[0.0], [2.0]]), weight=torch.tensor([0.0, 3.0])))
    assert float(total) == 6 and float(weight) == 3 and torch.isfinite(module.losses).all()


def test_a_flow_with_preprocessed_conditions_alone_is_trained_in_its_own_dtype() -> None:
    from sciflow.flows import NeuralSplineFlow, Preprocessed
    from sciflow.preprocessing import Column, Preprocessing

    x, condition = rows(64)
    pt = Preprocessing([Column("pt", transform="log")]).fit(condition.abs() + 1)
    flow = Preprocessed(NeuralSplineFlow(1, 1, transforms=1, bins=4, hidden=(8,), kind="autoregressive"), condition=pt)
    assert fit(flow, (x, condition.abs() + 1), epochs=1, batch_size=32, **QUIET).steps == 2
