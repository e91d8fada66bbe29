"""Contrastive flow matching: negatives, its minimiser, and the separation of classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads import Endpoint
from sciflow.transport.objectives.contrastive import ContrastiveFlowMatching, other_class
from sciflow.transport.objectives.flow_matching import FlowMatching


def test_negatives_are_of_another_class_and_uniform() -> None:
    """Seeded; 20,000 draws, chi-square against uniform at 1e-4."""
    torch.manual_seed(0)
    label = torch.tensor([2.0, 0, 1, 2, 2, 0]).unsqueeze(1)
    counts = torch.zeros(6, 6)
    for _ in range(2000):
        row, found = other_class(label, 6)
        assert bool(found.all())
        counts[torch.arange(6), row] += 1
    same = label == label.T
    assert float(counts[same].sum()) == 0
    expected = torch.where(same, 0, 2000 / (~same).sum(1, keepdim=True))
    square = torch.where(same, 0, (counts - expected).square() / expected.clamp_min(1)).sum(1)
    assert bool((square < 21.2).all())  # at most 4 degrees of freedom, chi-square above 21.2 has probability 3e-4


def test_conditions_of_any_form_tell_classes() -> None:
    torch.manual_seed(0)
    condition = {"kind": torch.tensor([0, 0, 1, 1]), "inner": {"value": torch.tensor([[0.0, 1], [0, 2], [0, 1], [0, 1]])}}
    for _ in range(50):
        row, found = other_class(condition, 4)
        assert row[0] != 0 and row[1] != 1 and row[2] in (0, 1) and row[3] in (0, 1) and bool(found.all())
    row, found = other_class(torch.zeros(3, 2), 3)
    assert not bool(found.any()) and bool(((row >= 0) & (row < 3)).all())


def _flow(**options) -> TransportFlow:
    torch.manual_seed(0)
    return TransportFlow(2, 1, network={"hidden": (16,)}, **options)


def test_what_it_cannot_contrast_is_flow_matching() -> None:
    batch = Batch(torch.randn(8, 2), torch.zeros(8, 1))

    def both(flow, batch, **options):
        torch.manual_seed(1)
        plain = FlowMatching(**options)(flow, batch)
        torch.manual_seed(1)
        return plain, ContrastiveFlowMatching(0.5, **options)(flow, batch)

    assert torch.equal(*both(_flow(), batch))  # one class only
    flow = _flow(unconditional=True)
    mixed = batch._replace(condition=torch.arange(8.0).unsqueeze(1) % 2)
    plain, contrasted = both(flow, mixed, drop_condition=0.5)
    unchanged = plain == contrasted
    assert 0 < int(unchanged.sum()) < 8  # the dropped rows
    assert bool((contrasted <= plain).all())


def test_refusals() -> None:
    with pytest.raises(UserError, match="no minimum"):
        ContrastiveFlowMatching(1.0)
    with pytest.raises(UserError, match="the flow has none"):
        ContrastiveFlowMatching()(TransportFlow(2, network={"hidden": (8,)}), Batch(torch.randn(4, 2)))
    with pytest.raises(UserError, match="head"):
        ContrastiveFlowMatching()(_flow(head=Endpoint()), Batch(torch.randn(4, 2), torch.arange(4.0).unsqueeze(1)))


def test_masks() -> None:
    flow = _flow(maskable=True)
    mask = torch.rand(6, 2) < 0.7
    batch = Batch(torch.randn(6, 2) * mask, torch.arange(6.0).unsqueeze(1), mask=mask)
    assert bool(ContrastiveFlowMatching(0.3)(flow, batch).isfinite().all())


_MEAN, _SIGMA = 1.0, 0.8


def _two_classes(rows: int) -> tuple[Tensor, Tensor]:
    """N(+-1, 0.8^2) in both features, labels +-1: classes that overlap."""
    label = 2.0 * torch.randint(2, (rows, 1)) - 1
    return _MEAN * label + _SIGMA * torch.randn(rows, 2), label


def _separation(strength: float, steps: int, seed: int = 0) -> tuple[float, float]:
    """Mean of label x over draws, and the share of draws that the Bayes classifier of the data assigns to their class."""
    torch.manual_seed(seed)
    flow = TransportFlow(2, 1, network={"hidden": (32, 32)})
    optimiser = torch.optim.Adam(flow.parameters(), 1e-2)
    for step in range(steps):
        for group in optimiser.param_groups:
            group["lr"] = 1e-2 * (1 - step / steps)
        optimiser.zero_grad()
        ContrastiveFlowMatching(strength)(flow, Batch(*_two_classes(512))).mean().backward()
        optimiser.step()
    with torch.no_grad():
        label = 2.0 * (torch.arange(4000).unsqueeze(1) % 2) - 1
        x = flow(label).sample()
    return float((label * x).mean()), float((label[:, 0] * x.sum(1) > 0).double().mean())


def _predicted(strength: float) -> float:
    """The mean of a class under the closed-form minimiser (v - strength m) / (1 - strength), m = -label: a number's ODE."""
    mean, steps = 0.0, 2000
    for k in range(steps):
        t = (k + 0.5) / steps
        slope = (t * _SIGMA**2 - (1 - t)) / (t**2 * _SIGMA**2 + (1 - t) ** 2)
        v = _MEAN + slope * (mean - t * _MEAN)
        mean += (v + strength * _MEAN) / (1 - strength) / steps
    return mean


def test_contrast_separates_classes_as_its_minimiser_says() -> None:
    """Reduced: 400 steps, one seed. Without contrast the mean is 1 and 96 % are told apart."""
    contrasted, accuracy = _separation(0.1, 400)
    plain, below = _separation(0.0, 400)
    assert abs(plain - 1) < 0.12 and abs(contrasted - _predicted(0.1)) < 0.15, (plain, contrasted, _predicted(0.1))
    assert contrasted > plain + 0.1 and accuracy > below


@pytest.mark.slow
def test_contrast_separates_classes_for_every_seed() -> None:
    for seed in range(3):
        found = [_separation(strength, 700, seed) for strength in (0.0, 0.05, 0.2)]
        assert found[0][0] < found[1][0] < found[2][0] and found[0][1] < found[1][1] < found[2][1], found
