"""Flows in the latent space of an autoencoder."""

from __future__ import annotations

import pytest
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.flows import LatentFlow, LayeredFlow, NeuralSplineFlow
from sciflow.networks import DenseAutoencoder, PrincipalComponents
from sciflow.training import MaximumLikelihood
from sciflow.transport.flow import TransportFlow
from sciflow.transport.latent import JointLatent
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers.fixed import FixedStep


def plane(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of R^8 in a plane, normal there, shifted by a condition along its first direction; and the condition."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(9)))[0]
    condition = torch.rand(rows, 1, generator=generator)
    z = torch.randn(rows, 2, generator=generator) * torch.tensor([3.0, 0.5]) + torch.cat((6 * condition, 0 * condition), 1)
    return z @ basis.T + 1.0, condition


def test_principal_components_are_those_of_the_covariance() -> None:
    x, _ = plane(2000)
    components = PrincipalComponents(8, 2).fit(x)
    torch.testing.assert_close(components(x), x, rtol=0, atol=1e-4)  # the data are in the plane
    z = components.encode(x)
    expected = torch.linalg.svdvals((x - x.mean(0)).double())[:2].square() / (len(x) - 1)
    torch.testing.assert_close(z.var(0).double(), expected, rtol=1e-4, atol=1e-4)
    one = PrincipalComponents(8, 1).fit(x)
    torch.testing.assert_close((one(x) - x).square().sum(1).mean(), z[:, 1].var(correction=0), rtol=1e-3, atol=1e-4)


def test_a_latent_normal_decodes_to_the_known_normal() -> None:
    """The identity flow over standardised principal components is N(mean, covariance) in the plane: false-alarm rate < 1e-4
    (5 standard errors for 20,000 draws of each entry)."""
    x, _ = plane(5000)
    flow = LatentFlow(LayeredFlow(2), PrincipalComponents(8, 2).fit(x)).calibrate(x)
    torch.manual_seed(0)
    draws = flow().sample((20000,))
    covariance = torch.cov(x.T)
    tolerance = 5 * (covariance.diagonal().max() * 2**0.5) / 20000**0.5
    assert (torch.cov(draws.T) - covariance).abs().max() < tolerance
    assert (draws.mean(0) - x.mean(0)).abs().max() < 5 * covariance.diagonal().max().sqrt() / 20000**0.5
    z = flow().latent(x[:5])
    assert z.shape == (5, 2)
    torch.testing.assert_close(flow().data(z), x[:5], rtol=0, atol=1e-3)


def test_flow_matching_in_a_frozen_latent_space(tmp_path) -> None:
    """Conditional mean of the draws against the known one, 0.25 of the 3 wide direction allowed at 4000 draws."""
    torch.manual_seed(0)
    x, condition = plane(4096)
    autoencoder = PrincipalComponents(8, 2).fit(x)
    flow = LatentFlow(TransportFlow(2, 1, network={"hidden": (64, 64)}, stepper=FixedStep(15)), autoencoder).calibrate(x)
    sciflow.fit(flow, (x, condition), objective=FlowMatching(), epochs=30, batch_size=256, learning_rate=3e-3, progress=False)
    known, _ = plane(1)
    assert known.shape == (1, 8)
    basis = torch.linalg.qr(torch.randn(8, 2, generator=torch.Generator().manual_seed(9)))[0]
    with torch.no_grad():
        found = (flow(torch.tensor([0.25])).sample((4000,)) - 1.0) @ basis
    assert (found.mean(0) - torch.tensor([1.5, 0.0])).abs().max() < 0.3
    assert (found.std(0) / torch.tensor([3.0, 0.5]) - 1).abs().max() < 0.12
    tree = sciflow.draw(flow(condition[:3]), 4, progress=False)
    assert tree["posterior"]["x"].shape == (1, 4, 3, 8) and (tree["sample_stats"]["n_velocity_evaluations"] == 30).all()
    assert "log_prob" not in tree["sample_stats"] and "loses something" in tree["sample_stats"].attrs["no_log_prob"]
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    again = sciflow.draw(loaded(condition[:3]), 4, progress=False)["posterior"]["x"].values
    assert (again == tree["posterior"]["x"].values).all()


def test_joint_training_keeps_information_in_the_latents() -> None:
    torch.manual_seed(0)
    x, condition = plane(2048)
    x = (x - x.mean(0)) / x.std()
    inner = TransportFlow(2, 1, network={"hidden": (32, 32)}, stepper=FixedStep(10))
    flow = LatentFlow(inner, DenseAutoencoder(8, 2, hidden=(32,)), frozen=False)
    objective = JointLatent(FlowMatching())
    sciflow.fit(flow, (x, condition), objective=objective, epochs=40, batch_size=128, learning_rate=5e-3, progress=False)
    with torch.no_grad():
        missed = (flow.autoencoder(x) - x).square().mean() / x.var()
        latents = flow.encode(x)
        draws = flow(condition).sample()
    assert missed < 0.02  # the plane is found
    assert (latents.mean(0)).abs().max() < 0.2 and (latents.std(0) - 1).abs().max() < 0.2  # the standardisation follows
    assert (draws.std(0) / x.std(0) - 1).abs().mean() < 0.2


def test_frozen_stays_frozen_and_gradients_reach_the_rest() -> None:
    torch.manual_seed(0)
    x, condition = plane(64)
    frozen = DenseAutoencoder(8, 2, hidden=(8,))
    before = [parameter.clone() for parameter in frozen.parameters()]
    flow = LatentFlow(TransportFlow(2, 1, network={"hidden": (8,)}, stepper=FixedStep(2)), frozen).calibrate(x)
    sciflow.fit(flow, (x, condition), objective=FlowMatching(), epochs=2, ema=0.9, progress=False)
    assert all(torch.equal(a, b) for a, b in zip(before, frozen.parameters(), strict=True))
    assert not flow.train().autoencoder.training
    joint = LatentFlow(NeuralSplineFlow(2, 1, transforms=2, hidden=(8,)), DenseAutoencoder(8, 2, hidden=(8,)), frozen=False)
    loss = JointLatent(MaximumLikelihood())(joint, sciflow.training.Batch(x, condition))
    assert loss.shape == (64,)
    loss.sum().backward()
    assert all(parameter.grad is not None for parameter in joint.parameters())


def test_refusals() -> None:
    autoencoder = PrincipalComponents(8, 2)
    flow = LatentFlow(TransportFlow(2, 1, network={"hidden": (8,)}), autoencoder)
    x, condition = plane(20)
    with pytest.raises(UserError, match="the autoencoder PrincipalComponents loses something"):
        flow(condition).log_prob(x)
    with pytest.raises(UserError, match="loses something"):
        sciflow.fit(flow, (x, condition), epochs=1, progress=False)
    with pytest.raises(UserError, match=r"event shape \(3,\), the latents of PrincipalComponents have \(2,\)"):
        LatentFlow(TransportFlow(3, network={"hidden": (8,)}), autoencoder)
    with pytest.raises(UserError, match="no absent features"):
        LatentFlow(TransportFlow(2, network={"hidden": (8,)}, maskable=True), autoencoder)
    with pytest.raises(UserError, match="the autoencoder is frozen"):
        JointLatent(FlowMatching())(flow, sciflow.training.Batch(x, condition))
    with pytest.raises(UserError, match="trains a LatentFlow, not a TransportFlow"):
        JointLatent(FlowMatching())(flow.flow, sciflow.training.Batch(x, condition))
    with pytest.raises(UserError, match="has 1 to 8"):
        PrincipalComponents(8, 9)
