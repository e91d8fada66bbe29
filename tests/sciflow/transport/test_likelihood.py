"""Maximum likelihood through continuous flows: small fits to known densities."""

from __future__ import annotations

import math

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.networks.time_network import TimeMLP
from sciflow.training import Batch, MaximumLikelihood
from sciflow.transport.divergence import Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.likelihood import EndTime, TemporalLikelihood
from sciflow.transport.steppers import Adaptive, Adjoint, FixedStep


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


CHOICES = {
    "fixed, exact": {"stepper": FixedStep(6)},
    "fixed, stochastic": {"stepper": FixedStep(6), "divergence": Hutchinson(1)},
    "adaptive": {"stepper": Adaptive(1e-2)},
    "adjoint": {"stepper": Adjoint(FixedStep(6))},
}


@pytest.mark.parametrize("choice", CHOICES)
def test_fits_a_conditional_gaussian(choice: str) -> None:
    """The mean negative log-likelihood comes within 0.1 nats of the entropy, which the untrained flow misses by 1."""
    condition = torch.rand(1024, 1) * 2
    x = condition + torch.randn(1024, 2) * 0.4
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.4))
    flow = TransportFlow(2, 1, network={"hidden": (24, 24)}, **CHOICES[choice])
    before = MaximumLikelihood()(flow, Batch(x, condition)).mean()
    sciflow.fit(flow, (x, condition), epochs=14, batch_size=128, learning_rate=2e-2, progress=False)
    exact = flow.sampling(stepper=FixedStep(20))
    with torch.no_grad():
        loss = -exact(condition).log_prob(x).mean()
        draws = flow(torch.tensor([1.5])).sample((2000,))
    assert before > entropy + 1 and abs(loss - entropy) < 0.1
    assert (draws.mean(0) - 1.5).abs().max() < 0.15 and (draws.std(0) - 0.4).abs().max() < 0.1


@pytest.mark.parametrize("stepper", [FixedStep(4), Adaptive(1e-2), Adjoint(Adaptive(1e-2))], ids=repr)
def test_gradients_reach_every_parameter_of_images_and_ragged_events(stepper) -> None:
    for masked in (False, True):
        network = {"hidden": (8,), "maskable": masked}
        flow = TransportFlow((1, 8, 8), 2, network=network, stepper=stepper, maskable=masked)
        x, condition = torch.randn(3, 1, 8, 8), torch.randn(3, 2)
        mask = torch.rand(3, 1, 8, 8) > 0.5 if masked else None
        loss = MaximumLikelihood()(flow, Batch(x if mask is None else x * mask, condition, mask=mask)).mean()
        loss.backward()
        for name, parameter in flow.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_absent_features_are_not_in_the_density() -> None:
    """A flow at rest (velocity 0): the density is the base's, over present features only."""
    flow = TransportFlow(4, network={"hidden": (8,), "maskable": True}, maskable=True, stepper=Adaptive(1e-3))
    torch.nn.init.zeros_(flow.network.layers[-1].weight)
    torch.nn.init.zeros_(flow.network.layers[-1].bias)
    mask = torch.tensor([[True, False, True, False], [True] * 4])
    x = torch.randn(2, 4) * mask
    wanted = (torch.distributions.Normal(0.0, 1.0).log_prob(x) * mask).sum(1)
    torch.testing.assert_close(flow(None, mask).log_prob(x), wanted)


def test_the_end_time_is_learned_and_shortens_the_way() -> None:
    x = torch.randn(1024, 2) * 0.7 + 0.5
    flow = TransportFlow(2, network=EndTime(TimeMLP(2, hidden=(24, 24)), time=2.0), stepper=FixedStep(6))
    sciflow.fit(
        flow, x, objective=TemporalLikelihood(weight=0.2), epochs=12, batch_size=128, learning_rate=2e-2, progress=False
    )
    entropy = 2 * (0.5 * math.log(2 * math.pi * math.e) + math.log(0.7))
    with torch.no_grad():
        assert abs(-flow().log_prob(x).mean() - entropy) < 0.15
    assert flow.network.time < 1.5
    assert all(parameter.requires_grad for parameter in flow.parameters())
    with pytest.raises(UserError, match="EndTime"):
        TemporalLikelihood()(TransportFlow(2, network={"hidden": (8,)}), Batch(x))
    with pytest.raises(UserError, match="time=0"):
        EndTime(TimeMLP(2, hidden=(8,)), time=0.0)


def test_the_end_time_is_a_substitution() -> None:
    """T v(x, T t) from 0 to 1 is v(x, t) from 0 to T."""
    network = TimeMLP(2, hidden=(8, 8))
    plain = TransportFlow(2, network=network, stepper=FixedStep(8, method="rk4"))
    longer = TransportFlow(2, network=EndTime(network, time=1.7), stepper=FixedStep(8, method="rk4"))
    x = torch.randn(4, 2)
    wanted = plain.solve(x, None, None, 0.0, 1.7, density=True)
    found = longer.solve(x, None, None, 0.0, 1.0, density=True)
    torch.testing.assert_close(found.x, wanted.x)
    torch.testing.assert_close(found.log_det.value, wanted.log_det.value)  # type: ignore[union-attr]
