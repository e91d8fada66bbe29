"""Gradients by the adjoint equation against direct ones."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.transport.divergence import Exact, Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers import Adaptive, Adjoint, FixedStep

pytestmark = pytest.mark.usefixtures("float64")


def _gradients(flow: TransportFlow, stepper, x, condition, mask, *, backwards: bool) -> list[torch.Tensor]:
    x, condition = x.clone().requires_grad_(), condition.clone().requires_grad_()
    changed = flow.sampling(stepper=stepper)
    if backwards:
        distribution = changed(condition) if mask is None else changed(condition, mask)
        loss = (distribution.log_prob(x) * torch.linspace(0.5, 2.0, len(x))).sum()
    else:
        context = changed.encoder(condition)
        solution = changed.solve(x, context, mask, 0.0, 1.0, density=True)
        loss = solution.x.sin().sum() + (solution.log_det.value**2).sum()  # type: ignore[union-attr]
    parameters = [x, condition, *flow.network.parameters()]
    return list(torch.autograd.grad(loss, parameters, allow_unused=True))


@pytest.mark.parametrize(
    "stepper", [FixedStep(20, method="dopri5"), Adaptive(1e-9, 1e-10), Adaptive(1e-9, 1e-10, method="dopri5")], ids=repr
)
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("divergence", [Exact(), Hutchinson(2, seed=1)], ids=repr)
def test_agrees_with_direct_gradients(stepper, backwards: bool, divergence) -> None:
    """Weights, x and the condition, through an encoder; points and log-determinants in the loss."""
    encoder_condition = {"a": 2, "b": 1}
    flow = TransportFlow(2, encoder_condition, network={"hidden": (8, 8)}, divergence=divergence)
    x, condition = torch.randn(4, 2), torch.randn(4, 3)

    def gradients(choice):
        leaf = condition.clone().requires_grad_()
        start = x.clone().requires_grad_()
        changed = flow.sampling(stepper=choice)
        given = {"a": leaf[:, :2], "b": leaf[:, 2:]}
        if backwards:
            loss = (changed(given).log_prob(start) * torch.linspace(0.5, 2.0, 4)).sum()
        else:
            solution = changed.solve(start, changed.encoder(given), None, 0.0, 1.0, density=True)
            loss = solution.x.sin().sum() + solution.log_det.value.square().sum()
        return torch.autograd.grad(loss, [start, leaf, *flow.network.parameters()], allow_unused=True)

    for found, wanted in zip(gradients(Adjoint(stepper)), gradients(stepper), strict=True):
        wanted = torch.zeros_like(found) if wanted is None else wanted  # the last bias has no part in a divergence
        assert (found - wanted).abs().max() < 1e-6 * wanted.abs().max().clamp_min(1.0)


def test_masks_and_images() -> None:
    flow = TransportFlow((1, 2, 2), 1, network={"hidden": (8,), "maskable": True}, maskable=True)
    mask = torch.rand(5, 1, 2, 2) > 0.3
    x, condition = torch.randn(5, 1, 2, 2) * mask, torch.randn(5, 1)
    stepper = FixedStep(20, method="dopri5")
    direct = _gradients(flow, stepper, x, condition, mask, backwards=True)
    adjoint = _gradients(flow, Adjoint(stepper), x, condition, mask, backwards=True)
    for found, wanted in zip(adjoint, direct, strict=True):
        if wanted is not None:
            torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-7)


def test_memory_does_not_grow_with_the_steps() -> None:
    """Tensors that the graph keeps between forward and backward."""
    flow = TransportFlow(4, network={"hidden": (16, 16)})
    x = torch.randn(6, 4)

    def kept(stepper) -> int:
        sizes = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t: (sizes.append(t.numel()), t)[1], lambda t: t):
            flow.sampling(stepper=stepper)().log_prob(x).sum()
        return sum(sizes)

    assert kept(Adjoint(FixedStep(20))) == kept(Adjoint(FixedStep(5))) < kept(FixedStep(5)) / 10
    assert kept(FixedStep(20)) > 3 * kept(FixedStep(5))


def test_without_gradients_it_is_the_stepper_itself() -> None:
    flow = TransportFlow(2, network={"hidden": (8,)}, stepper=Adjoint(Adaptive(1e-4)))
    with torch.no_grad():
        x = torch.randn(3, 2)
        assert torch.equal(flow().log_prob(x), flow.sampling(stepper=Adaptive(1e-4))().log_prob(x))
    with pytest.raises(UserError, match="cannot go backwards"):
        Adjoint(Adjoint(FixedStep()))
