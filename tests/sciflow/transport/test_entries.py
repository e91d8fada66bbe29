"""What is given by mistake is called so where it enters, and nothing that would broadcast is trained on."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sciflow
from sciflow.distributions import DiagonalNormal
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport import (
    Adaptive,
    Adjoint,
    ClassifierFree,
    ConditionalOT,
    ConsistencyFlowMatching,
    Endpoint,
    EndpointEnergy,
    Exact,
    ExactOT,
    FixedStep,
    FlowMatching,
    Hutchinson,
    Linear,
    LinearConstraint,
    LocalFlow,
    LogitNormal,
    MapStep,
    PartialOT,
    PriorGuidance,
    Reflow,
    SchroedingerBridge,
    SDEStep,
    Sinkhorn,
    StochasticInterpolant,
    Torus,
    TransportFlow,
    UnbalancedOT,
    Uniform,
    Velocity,
    WithinClasses,
    fit_local,
    reflow_pairs,
)

SMALL = {"hidden": (8,)}
PRESENT = torch.ones(5, 3, dtype=torch.bool)


def _flow(condition: int = 0, **options) -> TransportFlow:
    return TransportFlow(3, condition, **{"network": SMALL, "stepper": FixedStep(2), **options})


@pytest.mark.parametrize(
    "batch",
    [
        Batch(torch.randn(5, 1)),
        Batch(torch.randn(5, 4)),
        Batch(torch.randn(5, 3, 1)),
        Batch(torch.randn(5, 3), source=torch.randn(5, 1)),
        Batch(torch.randn(5, 3), source=torch.randn(1, 3)),
        Batch(torch.randn(5, 3), mask=PRESENT[:, :1]),
        Batch(torch.randn(5, 3), mask=PRESENT.float()),
    ],
    ids=lambda batch: "; ".join(f"{name} {tuple(entry.shape)}" for name, entry in batch._asdict().items() if entry is not None),
)
def test_rows_of_another_shape(batch: Batch) -> None:
    with pytest.raises(ValueError, match=r"the flow needs \(5, 3\)|expected torch.bool"):
        FlowMatching()(_flow(maskable=True), batch)


def test_a_mask_needs_a_flow_that_knows_of_masks_and_fit_says_so_too() -> None:
    with pytest.raises(ValueError, match="without maskable=True"):
        FlowMatching()(_flow(), Batch(torch.randn(5, 3), mask=PRESENT))
    with pytest.raises(ValueError, match=r"x has shape \(\d+, 1\), the flow needs"):
        sciflow.fit(_flow(), torch.randn(40, 1), objective=FlowMatching(), epochs=1, progress=False)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("network", nn.Linear(3, 3)), ("network", (8, 8)), ("base", DiagonalNormal), ("path", Linear), ("head", Velocity),
        ("space", Torus), ("stepper", "rk4"), ("stepper", FixedStep), ("divergence", Exact), ("guidance", ClassifierFree(2.0)),
        ("guidance", [ClassifierFree]), ("target_shift", 1.0),
    ],
)  # fmt: skip
def test_parts_of_another_kind(name: str, value) -> None:
    if name == "guidance" and isinstance(value, ClassifierFree):  # one is as good as a list of one
        assert len(_flow(1, unconditional=True, guidance=value).guidance) == 1
        return
    with pytest.raises(UserError, match=f"{name} (has to be|is)"):
        _flow(**{name: value})
    if name in ("stepper", "divergence", "guidance"):
        for wrong in (value, None):
            with pytest.raises(UserError, match=f"{name} (has to be|is)"):
                _flow().sampling(**{name: wrong})


def test_parts_of_an_objective_of_another_kind() -> None:
    for options in ({"coupling": ExactOT}, {"times": LogitNormal}, {"drop_condition": 2.0}, {"drop_condition": -0.1}):
        with pytest.raises(UserError):
            FlowMatching(**options)


@pytest.mark.parametrize("coupling", [ExactOT(), ConditionalOT(), WithinClasses(ExactOT())], ids=repr)
@pytest.mark.parametrize("rows", [0, 1])
def test_batches_of_no_and_of_one_row(coupling, rows: int) -> None:
    flow = _flow(0 if isinstance(coupling, ExactOT) else 1)
    condition = torch.zeros(rows, 1) if flow.encoder.features else None
    assert FlowMatching(coupling=coupling)(flow, Batch(torch.randn(rows, 3), condition)).shape == (rows,)
    assert flow(condition).log_prob(torch.randn(rows, 3)).shape == (rows,)


def test_log_density_has_the_shapes_of_log_prob() -> None:
    flow = _flow(1)
    x, condition = torch.randn(4, 2, 3), torch.randn(2, 1)
    found = flow.log_density(x, condition)
    torch.testing.assert_close(found.value, flow(condition).log_prob(x))
    for wrong in ((x[..., :2], condition), (x, torch.randn(3, 1))):
        with pytest.raises(ValueError, match=r"expected|broadcast"):
            flow.log_density(*wrong)


class _PerFeature(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.square()


def test_guidance_that_does_not_fit_the_events() -> None:
    with pytest.raises(UserError, match="about 2 features, the events have 3"):
        _flow(guidance=[LinearConstraint([[1.0, 1.0]], [0.0])])().sample()
    with pytest.raises(ValueError, match=r"has shape \(1, 3\), expected one per row"):
        _flow(guidance=[EndpointEnergy(_PerFeature())])().sample()


def test_nothing_leads_from_the_data_where_the_velocity_is_singular() -> None:
    """The way back from t = 1 was off by more than 1 in silence, and adjoint gradients were zero."""
    flow = _flow(head=Endpoint())
    x = flow().sample((2,))
    for call in (lambda: flow().latent(x), lambda: reflow_pairs(flow, x=x)):
        with pytest.raises(UserError, match="singular at t = 1"):
            call()
    with pytest.raises(UserError, match="goes back from t = 1"):
        flow.sampling(stepper=Adjoint(FixedStep(2)))


def test_adjoint_draws_with_gradients_have_evaluations_of_each_row() -> None:
    flow = _flow(1, stepper=Adjoint(FixedStep(2)))
    flow(torch.zeros(4, 1)).rsample((3,)).sum().backward()
    assert any(bool((weight.grad != 0).any()) for weight in flow.network.parameters() if weight.grad is not None)


def test_a_chain_to_noise_takes_no_sources() -> None:
    x = torch.randn(40, 3)
    with pytest.raises(UserError, match="a chain of flows leads to noise"):
        fit_local(LocalFlow(3, block={"network": SMALL}), Batch(x, source=x.flip(0)), epochs=1, progress=False)


@pytest.mark.parametrize(
    "build",
    [
        lambda: Uniform(-1.0, 2.0),
        lambda: Uniform(0.8, 0.2),
        lambda: LogitNormal(0.0, math.nan),
        lambda: SchroedingerBridge(-1.0),
        lambda: SchroedingerBridge(0.0),
        lambda: StochasticInterpolant(scale=math.nan),
        lambda: SDEStep(5, scale=math.nan),
        lambda: ExactOT(block=1),
        lambda: Sinkhorn(0.1, block=0),
        lambda: Sinkhorn(0.1, iterations=0),
        lambda: ConditionalOT(block=1),
        lambda: UnbalancedOT(block=1),
        lambda: PartialOT(0.9, block=1.5),
        lambda: FixedStep(10.0),
        lambda: FixedStep(True),
        lambda: MapStep(2.0),
        lambda: FixedStep(None),
        lambda: Adaptive(max_steps=1e3),
        lambda: Hutchinson(1.5),
        lambda: Exact(0),
        lambda: ConsistencyFlowMatching(decay=2.0),
        lambda: ConsistencyFlowMatching(strength=-1.0),
        lambda: Reflow(huber=-1.0),
        lambda: ClassifierFree("2"),
        lambda: ClassifierFree(math.nan),
        lambda: PriorGuidance(math.nan),
    ],
)
def test_settings_that_mean_nothing(build: Callable[[], object]) -> None:
    with pytest.raises(UserError):
        build()


def test_numbers_of_numpy_are_numbers() -> None:
    assert FixedStep(np.int64(5)).times == FixedStep(5).times
    assert FixedStep(np.linspace(0, 1, 3)).times == [0.0, 0.5, 1.0]
