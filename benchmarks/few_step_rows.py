"""What `few_step.py` compares: how each row is trained and sampled."""

from __future__ import annotations

import copy
import functools
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from methods import HIDDEN, fit
from moons import moons
from torch import Tensor

from sciflow.training import Batch
from sciflow.transport import (
    AlphaFlow,
    FixedStep,
    FlowMatching,
    MapStep,
    MeanFlow,
    PowerLaw,
    Reflow,
    SplitMeanFlow,
    TransportFlow,
    Uniform,
    reflow_pairs,
)
from sciflow.transport.steppers.base import Stepper

ROWS, PAIRS, EMA = 100_000, 200_000, 0.999
ONE, FIFTY = FixedStep(1, method="euler"), FixedStep(25)
REFERENCE, HALF, QUARTERS = "flow matching", "flow matching, half of the steps", "flow matching, three quarters"


class Row(NamedTuple):
    """`train(seed, steps)` gives the flow and its processor seconds; `one` and `fifty` are how it is sampled.

    `teacher` is the name of the row that it shortens, None for flows: of these the fifty evaluations are compared. Rows of
    the `study` of what limits the maps have the first seed only.
    """

    name: str
    train: Callable[[int, int], tuple[TransportFlow, float]]
    one: Stepper = MapStep(1)
    fifty: Stepper = MapStep(50)
    teacher: str | None = REFERENCE
    study: bool = False


def trained(flow: TransportFlow, data: Any, seed: int, steps: int, make: Callable[[], Any]) -> tuple[TransportFlow, float]:
    start = time.process_time()
    fit(flow, data, seed, steps, make, ema=EMA)
    return flow.eval(), time.process_time() - start


def begin(seed: int, two_time: bool) -> TransportFlow:
    torch.manual_seed(seed)
    return TransportFlow(2, 1, network={"hidden": HIDDEN, "two_time": two_time})


def rows_of(seed: int) -> tuple[Tensor, Tensor]:
    return moons(1000 + seed, ROWS)


@functools.cache
def first(seed: int, steps: int, share: float) -> tuple[TransportFlow, float]:
    """What distilled rows begin from and learn from: a two-time network whose diagonal was trained for a share of the steps."""
    return trained(begin(seed, True), rows_of(seed), seed, round(share * steps), FlowMatching)


@functools.cache
def pairs(seed: int, steps: int, share: float) -> tuple[Batch, float]:
    flow, seconds = first(seed, steps, share)
    start = time.process_time()
    joined = reflow_pairs(flow, PAIRS, rows_of(seed)[1], stepper=FixedStep(8, method="rk4"), seed=seed)
    return joined, seconds + time.process_time() - start


def plain(seed: int, steps: int) -> tuple[TransportFlow, float]:
    return trained(begin(seed, False), rows_of(seed), seed, steps, FlowMatching)


def straightened(name: str, make: Callable[[], Reflow]) -> Row:
    """Reflow spends three quarters of the steps on its flow: a regression is learned quickly and cannot be better."""

    def train(seed: int, steps: int) -> tuple[TransportFlow, float]:
        joined, before = pairs(seed, steps, 0.75)
        start = copy.deepcopy(first(seed, steps, 0.75)[0])
        flow, seconds = trained(start, (joined, None), seed, steps - round(0.75 * steps), make)
        return flow, before + seconds

    return Row(name, train, ONE, FIFTY, QUARTERS)


def distilled(name: str, make: Callable[[TransportFlow, int], Any]) -> Row:
    """Maps spend half of the steps."""

    def train(seed: int, steps: int) -> tuple[TransportFlow, float]:
        teacher, before = first(seed, steps, 0.5)
        count = steps - round(0.5 * steps)
        start = copy.deepcopy(teacher)
        flow, seconds = trained(start, rows_of(seed), seed, count, lambda: make(teacher, count))
        return flow, before + seconds

    return Row(name, train, teacher=HALF)


def scratch(make: Callable[[int], Any]) -> Callable[[int, int], tuple[TransportFlow, float]]:
    return lambda seed, steps: trained(begin(seed, True), rows_of(seed), seed, steps, lambda: make(steps))


TABLE = [
    Row(REFERENCE, plain, ONE, FIFTY, None),
    Row(QUARTERS, lambda seed, steps: first(seed, steps, 0.75), ONE, FIFTY, None),
    Row(HALF, lambda seed, steps: first(seed, steps, 0.5), ONE, FIFTY, None),
    straightened("reflow", lambda: Reflow(huber=None, times=PowerLaw(-0.9))),
    distilled("MeanFlow, distilled", lambda teacher, steps: MeanFlow(ratio=0.9, last=1.0, teacher=teacher)),
    distilled("alpha-Flow, distilled",
              lambda teacher, steps: AlphaFlow(0, int(0.3 * steps), ratio=0.9, last=1.0, teacher=teacher)),
    distilled("SplitMeanFlow, distilled", lambda teacher, steps: SplitMeanFlow(ratio=0.9, last=0.5, teacher=teacher)),
    straightened("reflow, all times 0", lambda: Reflow(huber=None, times=Uniform(0.0, 1e-6)))._replace(study=True),
    straightened("reflow, default loss and times", Reflow)._replace(study=True),
    distilled("MeanFlow, distilled, all s", lambda teacher, steps: MeanFlow(teacher=teacher))._replace(study=True),
    distilled("MeanFlow without teacher, from its weights",
              lambda teacher, steps: MeanFlow(ratio=0.75, last=1.0))._replace(study=True),
    Row("MeanFlow from data", scratch(lambda steps: MeanFlow(ratio=0.75, last=1.0)), study=True),
    Row("MeanFlow from data, all s", scratch(lambda steps: MeanFlow()), study=True),
]  # fmt: skip
