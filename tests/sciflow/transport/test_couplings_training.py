"""Couplings in training: what resampling does to targets, few-step sampling, and coupling ahead of the training."""

from __future__ import annotations

import gc
import importlib
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.couplings import (
    ConditionalOT,
    Coupling,
    ExactOT,
    Independent,
    Prefetched,
    Sinkhorn,
    UnbalancedOT,
    WithinClasses,
)
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


def waits_for(objective: Prefetched) -> list[int]:
    """After every step the worker is waited for: it computes all passes but the first. How many pieces it has done."""
    pieces: list[int] = []

    def wait() -> None:
        ahead = objective._ahead
        assert ahead is not None
        while ahead.worker is not None and (not ahead.ready or any(turn.busy for turn in ahead.turns)):
            ahead._listen(60.0)
        pieces.append(sum(turn.theirs for turn in ahead.turns))

    objective.after_step = wait  # type: ignore[method-assign]
    return pieces


@pytest.mark.parametrize(
    ("coupling", "options"),
    [(ExactOT(), {}), (Sinkhorn(), {"drop_last": True}), (UnbalancedOT(), {}), (WithinClasses(UnbalancedOT()), {})],
    ids=repr,
)
def test_the_worker_changes_nothing(coupling: Coupling, options: dict[str, bool]) -> None:
    """Not with all couplings from the worker, and not with those it gets done beside a training that does not wait."""
    x, label = eight_gaussians(300, torch.Generator().manual_seed(0))
    data = (x, label[:, None]) if coupling.needs_condition else x
    waited, in_line = (Prefetched(FlowMatching(coupling=coupling), data, block=64, worker=worker) for worker in (True, False))
    pieces = waits_for(waited)
    found = fitted(waited, data, **options)
    assert max(pieces) == 10  # five of the pass that is trained on, five of the next one
    assert same(found, fitted(in_line, data, **options))
    process = waited._ahead.worker.process  # type: ignore[union-attr]
    assert process.poll() is None
    del waited
    gc.collect()
    assert process.poll() is not None


def test_a_training_that_does_not_wait_helps(caplog) -> None:
    """Other numbers of threads, passes that are left out, and a worker that is killed: the noise is that of the rows' pass."""
    x, _ = eight_gaussians(600, torch.Generator().manual_seed(0))
    flow, rows = TransportFlow(2, network={"hidden": (8,)}).train(), torch.arange(600)
    ahead, in_line = (Prefetched(FlowMatching(coupling=Sinkhorn()), x, block=64, worker=worker) for worker in (True, False))
    threads = torch.get_num_threads()

    def equal(number: int) -> bool:
        for objective in (ahead, in_line):
            objective.set_extra_state({"served": torch.zeros(600), "number": number})
            torch.set_num_threads(1 if objective is ahead else 2)
            objective(flow, Batch(x, index=rows))
        assert torch.get_num_threads() == 2
        (a, v), (b, w) = (objective._noise(flow, rows) for objective in (ahead, in_line))
        return torch.equal(a, b) and v is None and w is None

    try:
        assert equal(0)
        passes = ahead._ahead
        assert passes is not None and passes.worker is not None
        while not passes.ready:
            passes._listen(60.0)
        assert all(equal(number) for number in (1, 2, 7, 8, 10, 3, 4))  # the worker is in the middle of the pass before
        process = passes.worker.process
        process.kill()
        assert all(equal(number) for number in (5, 6, 7))
    finally:
        torch.set_num_threads(threads)
    assert passes.worker is None and process.returncode == -signal.SIGKILL
    assert "ended with status -9: from now on in line" in caplog.text


FAILING = """
import os
from sciflow.transport.couplings import ExactOT

class FailsElsewhere(ExactOT):
    def __init__(self, home):
        self.home = home
        super().__init__()

    def choose(self, pair, uniform):
        if os.getpid() != self.home:
            raise RuntimeError("no plan in this process")
        return super().choose(pair, uniform)
"""


@pytest.mark.parametrize("importable", [True, False])
def test_a_worker_that_fails_is_reported_and_replaced(importable: bool, tmp_path, monkeypatch, caplog) -> None:
    (tmp_path / "failing_coupling.py").write_text(FAILING)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        cls = importlib.import_module("failing_coupling").FailsElsewhere
        patch.setattr(sys, "path", sys.path if importable else sys.path[1:])
        x, _ = eight_gaussians(300, torch.Generator().manual_seed(0))
        objective = Prefetched(FlowMatching(coupling=cls(os.getpid())), x, block=64)
        waits_for(objective)
        found = fitted(objective, x)
    assert same(found, fitted(Prefetched(FlowMatching(coupling=ExactOT()), x, block=64, worker=False), x))
    what = "RuntimeError: no plan in this process" if importable else "No module named 'failing_coupling'"
    assert what in caplog.text and "from now on in line" in caplog.text


SCRIPT = """
import os, sys, time, torch, sciflow
from sciflow.errors import UserError
from sciflow.transport.couplings import ExactOT, Prefetched
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching

class Own(ExactOT):
    pass

x = torch.randn(4000, 2)

def fit(objective):
    flow = TransportFlow(2, network={"hidden": (8,)})
    sciflow.fit(flow, x, objective=objective, validation=0, epochs=50, batch_size=1000, progress=False)

try:
    fit(Prefetched(FlowMatching(coupling=Own()), x, block=1000))
except UserError as error:
    print(error, flush=True)
objective = Prefetched(FlowMatching(coupling=ExactOT()), x, block=1000)

def after_step():
    ahead = objective._ahead
    while not ahead.ready:
        ahead._listen(60.0)
    print(ahead.worker.process.pid, flush=True)
    if sys.argv[1] == "interrupted":
        raise KeyboardInterrupt
    time.sleep(100)

objective.after_step = after_step
fit(objective)
"""


@pytest.mark.parametrize("end", ["interrupted", "killed"])
def test_a_script_without_a_guard_leaves_no_process(end: str, tmp_path) -> None:
    """The script is not run a second time by the worker, which ends with it, in whatever way that ends."""
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    process = subprocess.Popen([sys.executable, script, end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert "of a class of the script itself" in process.stdout.readline()
    worker = int(process.stdout.readline())
    if end == "killed":
        process.kill()
    output, errors = process.communicate(timeout=60)
    assert output == "" and (end == "killed" or "KeyboardInterrupt" in errors)
    for _ in range(200):
        try:
            os.kill(worker, 0)
            state = Path(f"/proc/{worker}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except (ProcessLookupError, FileNotFoundError):
            return
        if state == "Z":  # dead: its new parent has not yet looked
            return
        time.sleep(0.05)
    raise AssertionError(f"the worker {worker} still runs")


def test_a_resumed_training_gets_the_same_noise(tmp_path) -> None:
    """Interrupted in the middle of the third pass: afterwards bit for bit the weights of an uninterrupted training."""
    x, label = eight_gaussians(300, torch.Generator().manual_seed(0))
    data = (x, label[:, None])

    def objective(worker: bool) -> Prefetched:
        return Prefetched(FlowMatching(coupling=ConditionalOT()), data, block=64, worker=worker)

    whole = fitted(objective(False), data, epochs=4)
    stopping, done = objective(True), []
    waits_for(stopping)
    wait = stopping.after_step

    def interrupt() -> None:
        wait()
        done.append(0)
        if len(done) == 15:
            raise KeyboardInterrupt

    stopping.after_step = interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        fitted(stopping, data, epochs=4, checkpoint=tmp_path, checkpoint_seconds=0.0)
    resumed = fitted(objective(False), data, epochs=4, checkpoint=tmp_path, resume=True)
    assert len(done) == 15 and same(whole, resumed)


def test_every_pass_has_new_noise_and_couples() -> None:
    x, _ = eight_gaussians(256, torch.Generator().manual_seed(0))
    prefetched = Prefetched(FlowMatching(coupling=ExactOT()), x, block=128, worker=False)
    flow = TransportFlow(2, network={"hidden": (8,)}).train()
    noise = []
    for _ in range(3):
        for rows in torch.randperm(256).split(50):
            prefetched(flow, Batch(x[rows], index=rows))
        noise.append(prefetched._noise(flow, torch.arange(256))[0])
        assert (noise[-1] - x).square().sum(1).mean() < 0.6 * (torch.randn(256, 2) - x).square().sum(1).mean()
    assert prefetched._number == 2
    assert not torch.isclose(noise[0], noise[1]).any() and not torch.isclose(noise[1], noise[2]).any()
    assert isinstance(prefetched.objective, FlowMatching) and isinstance(prefetched.objective.coupling, ExactOT)
    again = pickle.loads(pickle.dumps(prefetched))  # a running worker is no part of it
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


def test_an_error_of_the_coupling_reaches_the_training() -> None:
    x, _ = eight_gaussians(64, torch.Generator().manual_seed(0))
    prefetched = Prefetched(FlowMatching(coupling=_Broken()), x)
    flow = TransportFlow(2, network={"hidden": (8,)}).train()
    with pytest.raises(UserError, match="no plan today"):
        prefetched(flow, Batch(x, index=torch.arange(64)))
