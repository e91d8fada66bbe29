"""Few-step training on class-conditional two moons: small in CI, at full length as slow tests.

The figures quoted are for evaluation seeds 10 to 12, on which settings were compared; the slow tests use others.
"""

from __future__ import annotations

import copy

import pytest
import torch

import sciflow
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.alpha_flow import AlphaFlow
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.objectives.consistency import ConsistencyFlowMatching
from sciflow.transport.objectives.flow_map_distillation import FlowMapDistillation
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.objectives.mean_flow import MeanFlow
from sciflow.transport.objectives.reflow import Reflow, UShaped
from sciflow.transport.objectives.split_mean_flow import SplitMeanFlow
from sciflow.transport.reflow import reflow_pairs
from sciflow.transport.steppers.base import Stepper
from sciflow.transport.steppers.bespoke import bellman_steps
from sciflow.transport.steppers.fixed import FixedStep
from sciflow.transport.steppers.map_step import MapStep

from .moons import distance, moons

ONE = FixedStep(1, method="euler")


def _trained(
    objective: TransportObjective, data: Batch | tuple[torch.Tensor, torch.Tensor], *, steps: int, hidden: tuple[int, ...],
    two_time: bool = False, flow: TransportFlow | None = None, batch: int = 512,
) -> TransportFlow:  # fmt: skip
    torch.manual_seed(0)
    if flow is None:
        flow = TransportFlow(2, 1, network={"hidden": hidden, "two_time": two_time}, stepper=FixedStep(50))
    rows = len(data[0])
    sciflow.fit(
        flow, data, objective=objective, validation=0, epochs=round(steps * batch / rows), batch_size=batch,
        learning_rate=2e-3, ema=0.99 if steps < 1000 else 0.999, progress=False, drop_last=True,
    )  # fmt: skip
    return flow


@pytest.mark.parametrize(
    "objective",
    [
        MeanFlow(),
        SplitMeanFlow(),
        AlphaFlow(0, 200),
        FlowMapDistillation("lagrangian"),
        FlowMapDistillation("eulerian"),
        ConsistencyFlowMatching(1, gap=0.2, decay=0.9),
    ],
    ids=lambda objective: type(objective).__name__ + getattr(objective, "form", ""),
)
def test_one_step_leaves_the_mean_of_the_class(objective: TransportObjective) -> None:
    """One Euler step of an exact velocity ends at the class mean, 0.70 from the data; 250 steps of training come to half."""
    two_time = getattr(objective, "two_time", False)
    flow = _trained(objective, moons(8192, 1), steps=250, hidden=(48, 48), two_time=two_time, batch=256)
    found = distance(flow, MapStep() if two_time else ONE, seed=10, draws=4000)
    assert found < 0.4


def test_reflow_straightens() -> None:
    teacher = _trained(FlowMatching(), moons(8192, 1), steps=400, hidden=(48, 48), batch=256)
    assert distance(teacher, ONE, seed=10, draws=4000) > 0.4
    pairs = reflow_pairs(teacher, 8192, moons(2, 0)[1], stepper=FixedStep(10), seed=5)
    flow = _trained(Reflow(), pairs, steps=300, hidden=(48, 48), batch=256, flow=copy.deepcopy(teacher))
    assert distance(flow, ONE, seed=10, draws=4000) < 0.25


def _ratios(flow: TransportFlow, stepper: Stepper, reference: TransportFlow) -> float:
    """Mean distance of three test seeds over that of the reference's 50 midpoint steps; 20,000 draws per class and seed."""
    seeds = (20, 21, 22)
    found = sum(distance(flow, stepper, seed=seed) for seed in seeds)
    return found / sum(distance(reference, FixedStep(50), seed=seed) for seed in seeds)


@pytest.fixture(scope="module")
def teacher() -> TransportFlow:
    return _trained(FlowMatching(), moons(40000, 1), steps=8000, hidden=(128, 128, 128))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reflow_needs_one_step(teacher: TransportFlow) -> None:
    """One Euler step of the second flow against 50 steps of the first. The paper's order of magnitude is reached, a ratio of
    1.2 is not: 1.5 were measured (0.015 against 0.010; 1.8 with the default loss and times; one Euler step of the first
    flow: 0.70). More pairs, a longer first flow and times at 0 alone come nearer: benchmarks/few_step.py."""
    pairs = reflow_pairs(teacher, 100000, moons(2, 0)[1], stepper=FixedStep(20), seed=5)
    objective = Reflow(huber=None, times=UShaped(12.0))  # least squares, most of it where the one step is
    flow = _trained(objective, pairs, steps=2500, hidden=(), flow=copy.deepcopy(teacher), batch=1024)
    assert _ratios(flow, ONE, teacher) < 2.5


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(("name", "bound"), [("mean flow", 7.0), ("split mean flow", 9.0), ("alpha flow", 10.0)])
def test_maps_need_one_step(name: str, bound: float, teacher: TransportFlow) -> None:
    """One jump against 50 steps of flow matching. A ratio of 1.5 is not reached: measured were 4.2 (mean flow, 0.043 against
    0.010), 6.0 (split mean flow, 0.061) and 7.1 (alpha flow after 4700 steps, 0.072); the bounds leave room.
    Without a teacher, that is: with one see benchmarks/few_step.py."""
    objective = {"mean flow": MeanFlow, "split mean flow": SplitMeanFlow, "alpha flow": lambda: AlphaFlow(0, 4000)}[name]()
    flow = _trained(objective, moons(40000, 1), steps=8000, hidden=(128, 128, 128), two_time=True)
    assert _ratios(flow, MapStep(), teacher) < bound


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("steps", [4, 8])
def test_fitted_steps_beat_equal_steps(steps: int, teacher: TransportFlow) -> None:
    """Also where it counts, in the distance from the data, each of three test seeds."""
    fitted = bellman_steps(teacher, steps, moons(2, 0)[1])
    for seed in (20, 21, 22):
        equal = distance(teacher, FixedStep(steps, method="euler"), seed=seed)
        assert distance(teacher, fitted, seed=seed) < equal
