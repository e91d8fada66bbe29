"""Divergences against autograd's Jacobian, for plain events, images and masks."""

from __future__ import annotations

import pytest
import torch

from sciflow.networks.mlp_divergence import mlp_and_divergence
from sciflow.networks.time_network import TimeMLP
from sciflow.transport.divergence import Exact, Hutchinson
from sciflow.transport.flow import TransportFlow

pytestmark = pytest.mark.usefixtures("float64")


class Slow(TimeMLP):
    """Without a divergence of its own."""

    output_and_divergence = None  # type: ignore[assignment]


def _jacobian_trace(field, t, x, mask=None) -> torch.Tensor:
    jacobian = torch.autograd.functional.jacobian(lambda x: field(t, x).flatten(1).sum(0), x)  # (D, B, *event)
    diagonal = torch.einsum("dbd->bd", jacobian.flatten(2))
    return diagonal.sum(1) if mask is None else (diagonal * mask.flatten(1)).sum(1)


@pytest.mark.parametrize("hidden", [(), (7,), (7, 6), (7, 6, 5), (7, 6, 5, 4), (7, 6, 5, 4, 3)], ids=str)
@pytest.mark.parametrize("activation", ["silu", "tanh", "relu", "gelu"])
def test_products_of_weights_are_the_trace(hidden, activation: str) -> None:
    network = TimeMLP(3, 2, hidden=hidden, activation=activation)
    x, t, context = torch.randn(5, 3), torch.rand(5), torch.randn(5, 2)
    out, found = network.output_and_divergence(x, t, context)
    torch.testing.assert_close(out, network(x, t, context))
    torch.testing.assert_close(found, _jacobian_trace(lambda t, x: network(x, t, context).squeeze(1), t, x))


def test_pieces_of_a_batch_and_second_derivatives(monkeypatch) -> None:
    """Batches are taken in pieces; the trace's own gradient is that of the Jacobian's trace."""
    monkeypatch.setattr("sciflow.networks.mlp_divergence._PIECE", 40)
    network = TimeMLP(3, hidden=(6, 5, 4))
    x, t = torch.randn(11, 3, requires_grad=True), torch.rand(11)
    layers = list(network.layers)
    inputs = torch.cat((x, t[:, None]), 1)
    _, found = mlp_and_divergence(
        inputs, 3, [layer.weight for layer in layers], [layer.bias for layer in layers], network.activate
    )
    v = network(x, t).squeeze(1)
    wanted = sum(torch.autograd.grad(v[:, i].sum(), x, create_graph=True)[0][:, i] for i in range(3))
    parameters = [x, layers[0].weight, layers[2].weight, layers[1].bias]
    for a, b in zip(torch.autograd.grad(found.sum(), parameters), torch.autograd.grad(wanted.sum(), parameters), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("directions", [1, 4, 64])
@pytest.mark.parametrize("shape", [(5,), (1, 2, 3)], ids=str)
def test_exact_is_the_trace_for_any_batch_of_directions(directions: int, shape) -> None:
    flow = TransportFlow(shape, network=Slow(shape, hidden=(9, 8)))
    field, x, t = flow.field(), torch.randn(4, *shape), torch.tensor(0.3)
    v, found = Exact(directions).bind(field, x)(t, x)
    torch.testing.assert_close(v, field(t, x))
    torch.testing.assert_close(found[:, 0], _jacobian_trace(field, t, x))


def test_masked_events_and_their_own_density() -> None:
    """Absent features have no part in the trace, whatever the network does there; the fast trace steps aside."""
    flow = TransportFlow(4, network={"hidden": (9, 8), "maskable": True}, maskable=True)
    mask = torch.tensor([[True, True, False, True], [False, True, True, False], [True] * 4])
    x, t = torch.randn(3, 4) * mask, torch.tensor(0.3)
    field = flow.field(None, mask)
    _, found = Exact().bind(field, x)(t, x)
    torch.testing.assert_close(found[:, 0], _jacobian_trace(field, t, x, mask))
    assert field.velocity_and_divergence is None
    assert flow(None, mask).log_prob(x).shape == (3,)


def test_a_network_with_a_trace_of_its_own_is_asked() -> None:
    fast = TransportFlow(4, 2, network={"hidden": (9, 8)})
    slow = TransportFlow(4, 2, network=Slow(4, 2, hidden=(9, 8)))
    slow.load_state_dict(fast.state_dict())
    condition, x = torch.randn(6, 2), torch.randn(6, 4)
    with torch.no_grad():
        torch.testing.assert_close(fast(condition).log_prob(x), slow(condition).log_prob(x))
    gradients = [
        torch.autograd.grad(flow(condition).log_prob(x).mean(), list(flow.network.parameters())[:-1]) for flow in (fast, slow)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_traces_of_some_rows() -> None:
    flow = TransportFlow(3, 1, network=Slow(3, 1, hidden=(8,)))
    x, context, t, index = torch.randn(6, 3), torch.randn(6, 1), torch.rand(6), torch.tensor([4, 1])
    for divergence in (Exact(), Hutchinson(3), Hutchinson(3, seed=2)):
        trace = divergence.bind(flow.field(context), x)
        part = trace.rows(index)
        assert part is not None
        for a, b in zip(part(t[index], x[index]), trace(t, x), strict=True):
            torch.testing.assert_close(a, b[index])


@pytest.mark.parametrize("shape", [(8,), (1, 3, 3)], ids=str)
def test_standard_error_is_honest(shape) -> None:
    """Mean squared error = mean squared standard error, and no bias, over 2000 rows with probes of their own.

    The tolerances are 5 and 4 standard deviations of the two averages: false alarms below 1e-4.
    """
    flow = TransportFlow(shape, network={"hidden": (16, 16), "activation": "tanh"})
    x = torch.randn(2000, *shape)
    with torch.no_grad():
        for parameter in flow.network.parameters():
            parameter.mul_(2)
        exact = flow.log_density(x)
        found = flow.sampling(divergence=Hutchinson(8, seed=5)).log_density(x)
        single = flow.sampling(divergence=Hutchinson(1)).log_density(x)
    assert exact.standard_error is None and single.standard_error is not None and single.standard_error.isnan().all()
    difference = found.value - exact.value
    assert difference.mean().abs() < 4 * difference.std() / 2000**0.5
    squares = difference.square() - found.standard_error.square()  # type: ignore[union-attr]
    assert squares.mean().abs() < 5 * squares.std() / 2000**0.5
    assert squares.mean().abs() < 0.15 * difference.square().mean()
