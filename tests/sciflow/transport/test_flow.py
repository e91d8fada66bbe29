"""The transport flow against closed forms."""

from __future__ import annotations

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.transport.divergence import Exact, Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers.fixed import FixedStep

from .analytic import GaussianMixtureVelocity

pytestmark = pytest.mark.usefixtures("float64")


def _mixture(size: int) -> GaussianMixtureVelocity:
    means = [[1.5] * size, [-1.0] + [0.5] * (size - 1)]
    return GaussianMixtureVelocity(means, [0.6, 0.9], [0.3, 0.7])


@pytest.mark.parametrize("size", [2, 8, 32])
def test_density_of_a_mixture_is_exact(size: int) -> None:
    network = _mixture(size)
    flow = TransportFlow(size, network=network, stepper=FixedStep(100, method="rk4"))
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((20,))
        assert (log_prob - network.log_prob(x)).abs().max() < 1e-3
        assert (flow().log_prob(x) - network.log_prob(x)).abs().max() < 1e-3


def test_hutchinson_is_unbiased_and_says_how_far_it_is_off() -> None:
    network = _mixture(8)
    flow = TransportFlow(8, network=network, stepper=FixedStep(40, method="rk4"), divergence=Hutchinson(16, seed=1))
    with torch.no_grad():
        x = flow().sample((200,))
        found = flow.log_density(x)
        again = flow.log_density(x[50:60])
    difference = found.value - network.log_prob(x)
    torch.testing.assert_close(again.value, found.value[50:60])  # probes belong to the row
    # value and error of a row are correlated, so that means are compared: four standard deviations, false alarm 1e-4
    assert difference.mean().abs() < 4 * difference.std() / 200**0.5
    assert 0.8 < difference.square().mean().sqrt() / found.standard_error.square().mean().sqrt() < 1.25


def test_learns_a_gaussian_and_comes_back(tmp_path) -> None:
    generator = torch.Generator().manual_seed(1)
    condition = torch.rand(4096, 1, generator=generator)
    x = condition + torch.randn(4096, 2, generator=generator) * 0.5
    flow = TransportFlow(2, 1, network={"hidden": (64, 64)}, stepper=FixedStep(20))
    sciflow.fit(flow, (x, condition), objective=FlowMatching(), epochs=40, batch_size=256, learning_rate=3e-3, progress=False)
    with torch.no_grad():
        draws = flow(torch.tensor([0.8])).sample((4000,))
        assert (draws.mean(0) - 0.8).abs().max() < 0.1 and (draws.std(0) - 0.5).abs().max() < 0.1
        sciflow.save(flow, tmp_path / "flow")
        loaded = sciflow.load(tmp_path / "flow")
        point = torch.tensor([[0.5, 1.0]])
        assert torch.equal(loaded(torch.tensor([0.8])).log_prob(point), flow(torch.tensor([0.8])).log_prob(point))


def test_draws_do_not_depend_on_chunks() -> None:
    flow = TransportFlow(2, network={"hidden": (16,)}, stepper=FixedStep(4), divergence=Hutchinson(2, seed=0))
    whole = sciflow.draw(flow(), 14, seed=3, progress=False)
    parts = sciflow.draw(flow(), 14, seed=3, chunk=3, progress=False)
    for group, name in (("posterior", "x"), ("sample_stats", "log_prob")):
        torch.testing.assert_close(torch.tensor(whole[group][name].values), torch.tensor(parts[group][name].values))


def test_sampling_shares_weights_and_refuses_another_model() -> None:
    flow = TransportFlow(2, network={"hidden": (16,)})
    quick = flow.sampling(stepper=FixedStep(2), divergence=Exact(1))
    assert quick.network is flow.network
    assert repr(flow.stepper) != repr(quick.stepper)
    with pytest.raises(UserError, match="not path"):
        flow.sampling(path=None)


def test_values_of_another_precision_are_taken() -> None:
    flow = TransportFlow(2, 1, network={"hidden": (8,)}, stepper=FixedStep(2)).float()
    x, condition = torch.randn(5, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64)
    torch.testing.assert_close(flow(condition).log_prob(x), flow(condition.float()).log_prob(x.float()))
    assert flow.log_density(x, condition.expand(5, 1)).value.dtype == torch.float32
