"""Heads: what they say at the exact output, what their losses are minimal at, and what absent features may not do."""

from __future__ import annotations

import math

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

import sciflow
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads import CategoricalEndpoint, Endpoint, GaussianMixture, Velocity, VelocityAndNoise
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.paths import Linear, SchroedingerBridge, StochasticInterpolant, VariancePreserving
from sciflow.transport.spaces.base import Euclidean
from sciflow.transport.steppers.endpoint import EndpointStep
from sciflow.transport.steppers.fixed import FixedStep

from .analytic_paths import AffineMixture, NoisyNormals

HEADS = [Velocity(), Endpoint(), CategoricalEndpoint(), GaussianMixture(3), VelocityAndNoise()]


pytestmark = pytest.mark.usefixtures("float64")


def _path(head):
    return SchroedingerBridge(0.5) if head.needs_noise else Linear()


def _one_hot(rows: int, *shape: int) -> torch.Tensor:
    return torch.nn.functional.one_hot(torch.randint(shape[-1], (rows, *shape[:-1])), shape[-1]).double()


@pytest.mark.parametrize("path", [Linear(), VariancePreserving()], ids=repr)
def test_an_exact_endpoint_gives_exact_velocity_endpoint_and_noise(path) -> None:
    mixture = AffineMixture(path, ((1.5, 0.0, 1.0, 0.0), (-1.0, 0.5, 0.0, 2.0)))
    t, x = torch.tensor([0.01, 0.4, 0.8, 0.99]), torch.randn(4, 4)
    wanted = mixture.quantities(x, t)
    out = wanted["endpoint"].unsqueeze(1)
    for name in ("velocity", "endpoint", "noise"):
        torch.testing.assert_close(getattr(Endpoint(), name)(out, x, t, path), wanted[name])
        torch.testing.assert_close(getattr(Velocity(), name)(wanted["velocity"].unsqueeze(1), x, t, path), wanted[name])
    end = torch.ones(4)
    assert torch.isfinite(Endpoint().velocity(out, x, end, path)).all()  # guarded, not meaningful
    torch.testing.assert_close(Endpoint().velocity(x.unsqueeze(1), x, end, Linear()), x)


@pytest.mark.parametrize("path", [SchroedingerBridge(0.8), StochasticInterpolant(gamma="sine")], ids=repr)
def test_velocity_and_noise_by_regression(path) -> None:
    """Linear least squares on 200,000 pairs finds the closed form within 5 standard errors (false alarm < 1e-5)."""
    network, rows = NoisyNormals(path), 200_000
    (m0, m1), (s0, s1), rho = *network.moments, network.rho
    z = torch.randn(2, rows, 1)
    x0, x1 = m0 + s0 * z[0], m1 + s1 * (rho * z[0] + math.sqrt(1 - rho**2) * z[1])
    head = VelocityAndNoise()
    for time in (0.2, 0.7):
        t = torch.full((rows,), time)
        bridge = path(Pair(x0, x1), t, Euclidean())
        out = network(bridge.xt, t)
        design = torch.cat([torch.ones_like(bridge.xt), bridge.xt], 1)
        covariance = torch.linalg.inv(design.T @ design)
        quantities = (
            (head.velocity(out, bridge.xt, t, path), bridge.ut),
            (head.endpoint(out, bridge.xt, t, path), x1),
            (head.noise(out, bridge.xt, t, path), bridge.noise),
        )
        for said, target in quantities:
            residual = target - said
            coefficients = covariance @ (design.T @ residual)
            errors = torch.sqrt(covariance.diagonal() * residual.var())
            assert (coefficients.squeeze(1).abs() < 5 * errors).all()


@pytest.mark.parametrize("head", [Velocity(), Endpoint(), VelocityAndNoise()], ids=repr)
def test_the_loss_is_minimal_at_the_closed_form(head) -> None:
    """The derivative of the mean loss along 6 directions is 0 within 5 standard errors (false alarm < 1e-5 per head)."""
    path, rows = _path(head), 20_000
    if head.needs_noise:
        network = NoisyNormals(path)
        (m0, m1), (s0, s1), rho = *network.moments, network.rho
        z = torch.randn(2, rows, 1)
        x0, x1 = m0 + s0 * z[0], m1 + s1 * (rho * z[0] + math.sqrt(1 - rho**2) * z[1])
    else:
        network = AffineMixture(path, what="endpoint" if isinstance(head, Endpoint) else "velocity")
        x0, x1 = torch.randn(rows, 1), network.sample(rows)
    t = torch.rand(rows)
    bridge = path(Pair(x0, x1), t, Euclidean())
    out = network(bridge.xt, t)
    for channel in range(head.channels):
        for feature in (torch.ones(rows, 1), bridge.xt, torch.sin(3 * bridge.xt) * t[:, None]):
            step = torch.zeros(rows, requires_grad=True)
            direction = torch.zeros_like(out)
            direction[:, channel] = feature
            loss = head.nll(out + step.reshape(-1, 1, 1) * direction, bridge, path)
            slope = torch.autograd.grad(loss.sum(), step)[0]
            assert slope.mean().abs() < 5 * slope.std() / math.sqrt(rows)


@pytest.mark.parametrize("shape", [(5,), (1, 2, 3)], ids=str)
def test_mixture_against_torch(shape) -> None:
    head, path = GaussianMixture(3), Linear()
    out, size = torch.randn(4, 7, *shape), math.prod(shape)
    bridge = path(Pair(torch.randn(4, *shape), torch.randn(4, *shape)), torch.rand(4), Euclidean())
    logits, scale = out[:, 3:6].flatten(2).mean(2), torch.sqrt(torch.exp(2 * out[:, 6].flatten(1).mean(1)) + 1e-6)
    components = Independent(Normal(out[:, :3].flatten(2), scale[:, None, None]), 1)
    mixture = MixtureSameFamily(Categorical(logits=logits), components)
    torch.testing.assert_close(head.nll(out, bridge, path), -mixture.log_prob(bridge.ut.flatten(1)) / size)
    velocity = head.velocity(out, bridge.xt, bridge.t, path)
    torch.testing.assert_close(velocity.flatten(1), mixture.mean)
    endpoint = head.endpoint(out, bridge.xt, bridge.t, path)
    torch.testing.assert_close(endpoint, path.endpoint_from_velocity(velocity, bridge.xt, bridge.t))


def test_categorical_loss_is_the_cross_entropy() -> None:
    head, path, x1 = CategoricalEndpoint(), Linear(), _one_hot(3, 5, 4)
    mask = torch.ones(3, 5, 4, dtype=torch.bool)
    mask[1, 2:] = False
    out = torch.randn(3, 1, 5, 4)
    bridge = Bridge(Pair(torch.randn(3, 5, 4), x1, mask=mask), torch.rand(3), torch.randn(3, 5, 4), torch.randn(3, 5, 4))
    for row, count in enumerate((5, 2, 5)):
        wanted = torch.nn.functional.cross_entropy(out[row, 0, :count], x1[row, :count].argmax(-1))
        torch.testing.assert_close(head.nll(out, bridge, path)[row], wanted)
    endpoint = head.endpoint(out, bridge.xt, bridge.t, path)
    torch.testing.assert_close(endpoint.sum(-1), torch.ones(3, 5))
    assert (endpoint > 0).all()


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_absent_features_have_no_influence(head) -> None:
    path, mask = _path(head), torch.ones(2, 5, 3, dtype=torch.bool)
    mask[:, 3:] = False
    x1 = _one_hot(2, 5, 3) * mask
    bridge = path(Pair(torch.randn(2, 5, 3) * mask, x1, mask=mask), torch.tensor([0.3, 0.6]), Euclidean())
    out = torch.randn(2, head.channels, 5, 3)
    other = torch.where(mask.unsqueeze(1), out, torch.full_like(out, torch.inf))
    assert torch.equal(head.nll(out, bridge, path), head.nll(other.nan_to_num(posinf=1e3), bridge, path))
    present = Bridge(
        Pair(bridge.pair.x0[:, :3], x1[:, :3]), bridge.t, bridge.xt[:, :3], bridge.ut[:, :3],
        None if bridge.noise is None else bridge.noise[:, :3],
    )  # fmt: skip
    torch.testing.assert_close(head.nll(out, bridge, path), head.nll(out[:, :, :3], present, path))
    for name in ("velocity", "endpoint", "noise"):
        whole = getattr(head, name)(out, bridge.xt, bridge.t, path, mask)
        part = getattr(head, name)(out[:, :, :3], present.xt, bridge.t, path)
        torch.testing.assert_close(whole[:, :3], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_gradients_reach_every_parameter_and_the_dtype_is_kept(head, dtype) -> None:
    flow = TransportFlow((4, 3), network={"hidden": (8,)}, head=head, path=_path(head), maskable=True).to(dtype)
    mask = torch.ones(6, 4, 3, dtype=torch.bool)
    mask[:2, 2:] = False
    loss = FlowMatching()(flow, Batch((_one_hot(6, 4, 3) * mask).to(dtype), mask=mask))
    assert loss.shape == (6,) and loss.dtype == dtype
    loss.sum().backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() and (p.grad != 0).any() for p in flow.parameters())
    field = flow.field(None, mask)
    t, x = torch.tensor(0.5, dtype=dtype), torch.randn(6, 4, 3, dtype=dtype) * mask
    for found in (field(t, x), field.endpoint(t, x), *field.velocity_and_noise(t, x)):
        assert found.shape == x.shape and found.dtype == dtype and (found[~mask] == 0).all()


@pytest.mark.parametrize("head", HEADS, ids=repr)
def test_shapes_on_the_meta_device_and_saving(head, tmp_path) -> None:
    flow = TransportFlow((2, 3), network={"hidden": (4,)}, head=head, path=_path(head), stepper=FixedStep(2, method="euler"))
    pair = Pair(torch.randn(3, 2, 3, device="meta"), torch.randn(3, 2, 3, device="meta"))
    bridge = flow.path(pair, torch.rand(3, device="meta"), Euclidean())
    out = torch.randn(3, head.channels, 2, 3, device="meta")
    assert head.nll(out, bridge, flow.path).shape == (3,)
    assert head.velocity(out, bridge.xt, bridge.t, flow.path).shape == (3, 2, 3)
    sciflow.save(flow, tmp_path / "flow")
    loaded = sciflow.load(tmp_path / "flow")
    assert repr(loaded.head) == repr(head)
    z = torch.randn(3, 2, 3)
    with torch.no_grad():
        assert torch.equal(loaded.field()(torch.tensor(0.3), z), flow.field()(torch.tensor(0.3), z))


def test_a_mixture_head_learns_two_modes() -> None:
    x = torch.cat([torch.full((512, 1), -2.0), torch.full((512, 1), 2.0)]) + 0.1 * torch.randn(1024, 1)
    flow = TransportFlow(1, network={"hidden": (32, 32)}, head=GaussianMixture(4), stepper=FixedStep(20))
    sciflow.fit(flow, x, objective=FlowMatching(), epochs=60, batch_size=128, learning_rate=5e-3, progress=False)
    with torch.no_grad():
        draws = flow().sample((2000,))
    assert ((draws.abs() - 2).abs() < 0.5).double().mean() > 0.9
    assert 0.35 < (draws > 0).double().mean() < 0.65


def test_an_endpoint_head_learns_points_that_follow_the_condition() -> None:
    condition = torch.rand(1024, 1)
    sign = 2.0 * torch.randint(0, 2, (1024, 1)) - 1
    x = torch.cat([sign, condition], 1)
    flow = TransportFlow(2, 1, network={"hidden": (32, 32)}, head=Endpoint(), stepper=EndpointStep(20))
    sciflow.fit(flow, (x, condition), objective=FlowMatching(), epochs=40, batch_size=128, learning_rate=5e-3, progress=False)
    with torch.no_grad():
        draws = flow(torch.tensor([0.8])).sample((2000,))
    assert 0.35 < (draws[:, 0] > 0).double().mean() < 0.65
    assert (draws[:, 1] - 0.8).abs().mean() < 0.05


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UserError, match="needs a noisy path such as SchroedingerBridge"):
        VelocityAndNoise().velocity(torch.zeros(2, 2, 1), torch.zeros(2, 1), torch.rand(2), Linear())
    with pytest.raises(UserError, match="use the head VelocityAndNoise"):
        Endpoint().velocity(torch.zeros(2, 1, 1), torch.zeros(2, 1), torch.rand(2), SchroedingerBridge())
    with pytest.raises(UserError, match="at least one component"):
        GaussianMixture(0)
