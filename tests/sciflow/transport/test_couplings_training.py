"""Couplings in training: what resampling does to targets, few-step sampling, and coupling ahead of the training."""

from __future__ import annotations

import pickle

import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.couplings import ConditionalOT, Coupling, ExactOT, Independent, Prefetched, Sinkhorn, UnbalancedOT
from sciflow.transport.couplings.exact import assign
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers.fixed import FixedStep


def eight_gaussians(rows: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points, and the class 0 for even and 1 for odd components."""
    component = torch.randint(8, (rows,), generator=generator)
    angle = component * torch.pi / 4
    return 3 * torch.stack([angle.cos(), angle.sin()], 1) + 0.2 * torch.randn(rows, 2, generator=generator), component % 2


def w2(x: Tensor, y: Tensor) -> float:
    cost = torch.cdist(x.double(), y.double()).square()
    return cost.gather(1, assign(cost)[:, None]).mean().sqrt().item()


def trained(
    coupling: Coupling, x: Tensor, label: Tensor | None, *, epochs: int, hidden: tuple[int, ...], seed: int = 0
) -> TransportFlow:
    torch.manual_seed(seed)
    flow = TransportFlow(2, 0 if label is None else 1, network={"hidden": hidden})
    data = x if label is None else (x, label[:, None].float())
    sciflow.fit(
        flow, data, objective=FlowMatching(coupling=coupling), epochs=epochs, batch_size=256, learning_rate=3e-3, validation=0,
        ema=0.99, seed=seed, progress=False,
    )  # fmt: skip
    return flow


def few_step_errors(flow: TransportFlow, steps: int, rows: int) -> list[float]:
    """W2 to fresh data of Euler samples, for every class."""
    generator = torch.Generator().manual_seed(99)
    x, label = eight_gaussians(4 * rows, generator)
    quick = flow.sampling(stepper=FixedStep(steps, method="euler"))
    torch.manual_seed(7)
    with torch.no_grad():
        if flow.encoder.features == 0:
            return [w2(quick().sample((rows,)), x[:rows])]
        return [w2(quick(torch.tensor([float(k)])).sample((rows,)), x[label == k][:rows]) for k in (0, 1)]


def test_resampling_keeps_every_target_and_label() -> None:
    """Drawing pairs with replacement loses a third of a batch's targets: here the loss sees all, with their labels."""
    x, label = eight_gaussians(200, torch.Generator().manual_seed(0))
    c = label[:, None].float()
    flow = TransportFlow(2, 1, network={"hidden": (8,)})
    for coupling in (ConditionalOT(), Independent()):
        pair = FlowMatching(coupling=coupling).pair(flow, Batch(x, c))
        assert torch.equal(pair.x1, x) and torch.equal(pair.condition, c) and torch.equal(pair.context, c)


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(), UnbalancedOT()], ids=repr)
def test_a_conditional_flow_refuses(coupling: Coupling) -> None:
    flow = TransportFlow(2, 1, network={"hidden": (8,)})
    with pytest.raises(UserError, match="condition"):
        FlowMatching(coupling=coupling)(flow, Batch(torch.randn(4, 2), torch.randn(4, 1)))


def test_transport_shortens_few_step_sampling() -> None:
    """W2 after one Euler step 0.92 against 1.55 to 1.68, after two 0.75 to 0.77 against 1.09 to 1.11 (two seeds)."""
    x, _ = eight_gaussians(4096, torch.Generator().manual_seed(0))
    plain, coupled = (trained(c, x, None, epochs=20, hidden=(64, 64)) for c in (Independent(), ExactOT()))
    for steps, factor in ((1, 1.5), (2, 1.25)):
        assert few_step_errors(coupled, steps, 400)[0] * factor < few_step_errors(plain, steps, 400)[0]


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_transport_shortens_few_step_sampling_per_class(seed: int) -> None:
    """Exact OT without a condition and C2OT in each class. At seed 0, W2 after one and two steps:

    0.77 and 0.61 against 2.76 and 1.38 without a condition, 1.07 and 0.87 against 2.60 and 1.28 in the worse class.
    """
    x, label = eight_gaussians(8192, torch.Generator().manual_seed(seed))
    for coupling, condition in ((ExactOT(), None), (ConditionalOT(), label)):
        plain, coupled = (trained(c, x, condition, epochs=30, hidden=(128, 128), seed=seed) for c in (Independent(), coupling))
        for steps in (1, 2):
            for better, worse in zip(few_step_errors(coupled, steps, 500), few_step_errors(plain, steps, 500), strict=True):
                assert better < 0.8 * worse


# --- coupling ahead -----------------------------------------------------------------------------------------------------------


def fitted(objective: object, data: object, **options: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    flow = TransportFlow(2, 1 if isinstance(data, tuple) else 0, network={"hidden": (16,)})
    sciflow.fit(flow, data, objective=objective, batch_size=48, progress=False, **{"epochs": 3, **options})  # type: ignore[arg-type]
    return flow.state_dict()


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize("coupling", [ExactOT(), Sinkhorn(), UnbalancedOT()], ids=repr)
@pytest.mark.parametrize("drop_last", [False, True])
def test_the_thread_changes_nothing(coupling: Coupling, drop_last: bool) -> None:
    x, _ = eight_gaussians(300, torch.Generator().manual_seed(0))
    ahead, in_line = (
        fitted(Prefetched(FlowMatching(coupling=coupling), x, block=64, thread=thread), x, drop_last=drop_last)
        for thread in (True, False)
    )
    assert same(ahead, in_line)


def test_a_resumed_training_gets_the_same_noise(tmp_path) -> None:
    """Interrupted in the middle of the third pass: afterwards bit for bit the weights of an uninterrupted training."""
    x, label = eight_gaussians(300, torch.Generator().manual_seed(0))
    data = (x, label[:, None])

    def objective() -> Prefetched:
        return Prefetched(FlowMatching(coupling=ConditionalOT()), data, block=64)

    whole = fitted(objective(), data, epochs=4)
    stopping, done = objective(), []

    def interrupt() -> None:
        done.append(0)
        if len(done) == 15:
            raise KeyboardInterrupt

    stopping.after_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fitted(stopping, data, epochs=4, checkpoint=tmp_path, checkpoint_seconds=0.0)
    resumed = fitted(objective(), data, epochs=4, checkpoint=tmp_path, resume=True)
    assert len(done) == 15 and same(whole, resumed)


def test_every_pass_has_new_noise_and_couples() -> None:
    x, _ = eight_gaussians(256, torch.Generator().manual_seed(0))
    prefetched = Prefetched(FlowMatching(coupling=ExactOT()), x, block=128)
    flow = TransportFlow(2, network={"hidden": (8,)}).train()
    noise = []
    for _ in range(3):
        for rows in torch.randperm(256).split(50):
            prefetched(flow, Batch(x[rows], index=rows))
        noise.append(prefetched._passes[int(prefetched.passes)].result()[0])
        assert (noise[-1] - x).square().sum(1).mean() < 0.6 * (torch.randn(256, 2) - x).square().sum(1).mean()
    assert int(prefetched.passes) == 2
    assert not torch.isclose(noise[0], noise[1]).any() and not torch.isclose(noise[1], noise[2]).any()
    assert isinstance(prefetched.objective, FlowMatching) and isinstance(prefetched.objective.coupling, ExactOT)
    again = pickle.loads(pickle.dumps(prefetched))  # a running thread is no part of it
    assert again.extra_repr() == prefetched.extra_repr()


def test_coupling_ahead_refuses() -> None:
    x, _ = eight_gaussians(64, torch.Generator().manual_seed(0))
    flow = TransportFlow(2, network={"hidden": (8,)}).train()
    with pytest.raises(UserError, match="nothing to compute ahead"):
        Prefetched(FlowMatching(), x)
    with pytest.raises(UserError, match="index of their own"):
        Prefetched(FlowMatching(coupling=ExactOT()), Batch(x, index=torch.arange(64)))
    prefetched = Prefetched(FlowMatching(coupling=ExactOT()), x)
    with pytest.raises(UserError, match="not those that Prefetched was given"):
        prefetched(flow, Batch(x + 1, index=torch.arange(64)))
    with pytest.raises(UserError, match="no row numbers"):
        prefetched(flow, Batch(x))
    conditional = TransportFlow(2, 1, network={"hidden": (8,)}).train()
    with pytest.raises(UserError, match="depend on the condition"):
        prefetched(conditional, Batch(x, torch.zeros(64, 1), index=torch.arange(64)))
    flow.base.shift = torch.nn.Parameter(torch.zeros(2))  # type: ignore[assignment]
    with pytest.raises(UserError, match="the base is learned"):
        prefetched(flow, Batch(x, index=torch.arange(64)))


class _Broken(ExactOT):
    def choose(self, pair, uniform):
        raise UserError("no plan today")


def test_an_error_in_the_thread_reaches_the_training() -> None:
    x, _ = eight_gaussians(64, torch.Generator().manual_seed(0))
    prefetched = Prefetched(FlowMatching(coupling=_Broken()), x)
    flow = TransportFlow(2, network={"hidden": (8,)}).train()
    with pytest.raises(UserError, match="no plan today"):
        prefetched(flow, Batch(x, index=torch.arange(64)))
