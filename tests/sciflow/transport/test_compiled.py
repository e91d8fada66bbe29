"""Fixed-step sampling as one graph: no network, trace or guidance breaks it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from sciflow.networks import ResidualMLP, TimeMLP, Transformer, UNet
from sciflow.transport import (
    Box,
    ClassifierFree,
    Endpoint,
    EndpointStep,
    FixedStep,
    Interval,
    MapStep,
    PriorGuidance,
    Rescheduled,
    SDEStep,
    Torus,
    TransportFlow,
    VariancePreserving,
)


def _flow(network: Any, **options: Any) -> TransportFlow:
    torch.manual_seed(0)
    network = network()
    context = network.context
    return TransportFlow(tuple(network.event_shape), context, network=network, **{"stepper": FixedStep(2), **options}).eval()


def _vector(**options: Any) -> TransportFlow:
    return _flow(lambda: TimeMLP(3, 2, hidden=(8, 8)), unconditional=True, **options)


CASES = {
    "MLP": lambda: _vector(),
    "residual": lambda: _flow(lambda: ResidualMLP(3, 2, width=16, blocks=1)),
    "transformer": lambda: _flow(lambda: Transformer((4, 2), 2, width=16, blocks=1, heads=2)),
    "U-Net": lambda: _flow(lambda: UNet((1, 4, 4), 2, widths=(8, 8))),
    "two times": lambda: _flow(lambda: TimeMLP(3, 2, hidden=(8,), two_time=True), stepper=MapStep(2)),
    "classifier-free": lambda: _vector(guidance=[ClassifierFree(1.5)]),
    "guided": lambda: _vector(
        guidance=[ClassifierFree(Interval(0.2, 0.8)), Rescheduled(VariancePreserving()), PriorGuidance(-0.1)]
    ),
    "endpoint": lambda: _vector(head=Endpoint(), stepper=EndpointStep(2)),
    "SDE": lambda: _vector(stepper=SDEStep(2)),
    "torus": lambda: TransportFlow(2, 2, network={"hidden": (8,)}, space=Torus(), stepper=FixedStep(2)),
    "box": lambda: TransportFlow(2, 2, network={"hidden": (8,)}, space=Box(0.0, 1.0), stepper=FixedStep(2)),
}
NO_DENSITY = {"two times", "endpoint", "SDE"}


def _agrees(name: str, density: bool, **options: Any) -> None:
    flow = CASES[name]()
    with torch.no_grad():
        for weight in flow.parameters():
            weight.normal_(std=0.3)
    context = torch.randn(5, 2)
    z = flow.base.rsample(5, context)
    noise = torch.rand(5, flow.stepper.uniforms(tuple(flow.event_shape)))  # inductor's own generator draws other numbers

    def sample(z: Tensor, context: Tensor) -> tuple[Tensor, Tensor | None]:
        found = flow.from_base(z, context, None, density=density, uniform=noise)
        return found.x, found.log_prob

    torch._dynamo.reset()
    with torch.no_grad():
        x, log_prob = torch.compile(sample, fullgraph=True, **options)(z, context)
        wanted, wanted_log_prob = sample(z, context)
    torch.testing.assert_close(x, wanted, rtol=1e-4, atol=1e-5)
    if density:
        torch.testing.assert_close(log_prob, wanted_log_prob, rtol=1e-4, atol=1e-4)


COVER = [(name, density) for name in CASES for density in (False, True) if not (density and name in NO_DENSITY)]


@pytest.mark.parametrize(("name", "density"), COVER)
def test_sampling_is_one_graph(name: str, density: bool) -> None:
    _agrees(name, density, backend="aot_eager" if name == "residual" else "eager")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "density"), COVER)
def test_compiled_sampling_is_sampling(name: str, density: bool) -> None:
    _agrees(name, density)
