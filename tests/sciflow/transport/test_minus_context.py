"""A given shift of the data: where the transport lives, density, saving, refusals."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.networks import TimeMLP
from sciflow.transport import TransportFlow
from sciflow.transport.bases.minus_context import MinusContext


def flow_of(shape: tuple[int, ...] = (2, 1, 3)) -> TransportFlow:
    torch.manual_seed(0)
    size = math.prod(shape)
    condition = {"guess": shape, "level": 2}
    return TransportFlow(
        shape, condition, network=TimeMLP(shape, size + 2, hidden=(8,)), target_shift=MinusContext(shape, size + 2)
    )


def test_draws_move_with_the_guess_and_so_does_the_density() -> None:
    """With a velocity of zero x = m + x_0 exactly, whatever m is."""
    flow = flow_of().double()
    with torch.no_grad():
        for weight in flow.network.parameters():
            weight.zero_()
    guess = torch.randn(4, 2, 1, 3, dtype=torch.float64)
    condition = {"guess": guess, "level": torch.zeros(4, 2, dtype=torch.float64)}
    uniform = torch.rand(4, flow.uniforms, dtype=torch.float64)
    x, log_prob = flow(condition).from_uniform(uniform)
    z = flow.base.from_uniform(uniform)
    torch.testing.assert_close(x, guess + z)
    torch.testing.assert_close(log_prob, flow.base.log_prob(z))
    torch.testing.assert_close(flow(condition).log_prob(x), flow.base.log_prob(z))


def test_saved_and_loaded_without_trust(tmp_path: Path) -> None:
    flow = flow_of()
    assert not list(flow.target_shift.parameters())  # type: ignore[union-attr]
    sciflow.save(flow, tmp_path / "flow")
    again = sciflow.load(tmp_path / "flow")
    condition = {"guess": torch.randn(2, 1, 3), "level": torch.randn(2)}
    uniform = torch.rand(3, flow.uniforms, dtype=torch.float64)
    assert torch.equal(*(each(condition).from_uniform(uniform, density=False)[0] for each in (flow, again)))


def test_masks_device_and_refusals() -> None:
    shift = MinusContext(2, 3)
    context = torch.tensor([[1.0, 2.0, 3.0]])
    assert shift(context, torch.tensor([[True, False]])).tolist() == [[-1.0, 0.0]]
    assert shift(context.to("meta")).device.type == "meta"
    with pytest.raises(ValueError, match=r"the shift needs a context of shape \(B, 3\), got \(1, 2\)"):
        shift(context[:, :2])
    with pytest.raises(ValueError, match="got none"):
        shift(None)
    with pytest.raises(UserError, match=r"a context of 3 features holds no guess of shape \(2, 2\)"):
        MinusContext((2, 2), 3)
