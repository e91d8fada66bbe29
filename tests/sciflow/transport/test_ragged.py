"""Absent features: what files hold in their place does not matter, and points are absent as a whole."""

from __future__ import annotations

import math

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport import (
    Adaptive,
    CategoricalEndpoint,
    FixedStep,
    FlowMatching,
    HyperbolicBall,
    ProductSpace,
    Sphere,
    Torus,
    TransportFlow,
)
from sciflow.transport.spaces.base import Space

SMALL = {"hidden": (8,)}


@pytest.mark.parametrize("stepper", [FixedStep(4), Adaptive(1e-3)])
@pytest.mark.parametrize("padding", [math.nan, math.inf, 5.0])
def test_padding_does_not_matter(stepper: FixedStep | Adaptive, padding: float) -> None:
    flow = TransportFlow(3, network=SMALL, maskable=True, stepper=stepper)
    mask = torch.tensor([[True, False, True], [False, False, True], [True, True, True]])
    x = torch.where(mask, torch.randn(3, 3), 0)
    padded = torch.where(mask, x, padding)
    with torch.no_grad():
        assert torch.equal(flow(None, mask).log_prob(padded), flow(None, mask).log_prob(x))
        assert torch.equal(flow(None, mask).latent(padded), flow(None, mask).latent(x))
        assert torch.equal(flow.log_density(padded, None, mask).value, flow.log_density(x, None, mask).value)


@pytest.mark.parametrize("stepper", [FixedStep(4), Adaptive(1e-3)])
def test_there_is_no_density_at_infinity(stepper: FixedStep | Adaptive) -> None:
    flow = TransportFlow(2, network=SMALL, stepper=stepper)
    x = torch.tensor([[0.1, 0.2], [math.inf, 0.0], [0.3, -math.inf]])
    with torch.no_grad():
        found = flow().log_prob(x)
        assert bool(found[0].isfinite()) and found[1:].tolist() == [-math.inf] * 2
        torch.testing.assert_close(found[:1], flow().log_prob(x[:1]))


@pytest.mark.parametrize(
    ("space", "size"), [(Sphere(), 3), (HyperbolicBall(), 2), (ProductSpace([Torus(), Sphere()], [1, 3]), 4)]
)
def test_points_are_present_as_a_whole(space: Space, size: int) -> None:
    """Without some of its coordinates a density on a sphere integrates to 0.5: refused where data and masks enter."""
    flow = TransportFlow((2, size), space=space, network=SMALL, maskable=True, stepper=FixedStep(2))
    mask = torch.ones(4, 2, size, dtype=torch.bool)
    mask[0, 1] = False
    assert flow(None, mask).sample().shape == (4, 2, size)
    mask[2, 0, -1] = False
    with pytest.raises(UserError, match="the mask cuts 1 points"):
        flow(None, mask)
    x = space.project(torch.randn(4, 2, size) / 4)
    with pytest.raises(UserError, match="the mask cuts 1 points"):
        sciflow.fit(flow, Batch(x, mask=mask), objective=FlowMatching(), epochs=1, progress=False)


def test_coordinates_of_a_torus_may_be_absent_one_by_one() -> None:
    flow = TransportFlow(2, space=Torus(), network=SMALL, maskable=True, stepper=FixedStep(2))
    assert flow(None, torch.tensor([[True, False]])).sample().shape == (1, 2)


def test_categories_are_probabilities() -> None:
    flow = TransportFlow((2, 3), head=CategoricalEndpoint(), network=SMALL)
    with pytest.raises(UserError, match=r"40 categorical rows are no probabilities \(first in event 0\)"):
        sciflow.fit(flow, torch.full((20, 2, 3), 0.5), objective=FlowMatching(), epochs=1, progress=False)
