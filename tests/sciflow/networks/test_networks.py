"""The networks against torch's own layers, and the masks against autograd."""

from __future__ import annotations

import pytest
import torch

from sciflow.errors import UserError
from sciflow.networks import MLP, Constant, MaskedMLP


def test_mlp_equals_torch_linear_layers() -> None:
    torch.manual_seed(0)
    network, x = MLP(3, 5, (7, 6)).double(), torch.randn(3, 11, dtype=torch.float64)
    rows = x.T
    for weight, bias in list(zip(network.weights, network.biases, strict=True))[:-1]:
        rows = torch.nn.functional.linear(rows, weight, bias).relu()
    rows = torch.nn.functional.linear(rows, network.weights[-1], network.biases[-1])
    assert torch.allclose(network(x), rows.T, rtol=0, atol=1e-14)


@pytest.mark.parametrize("activation", ["relu", "silu", "gelu", "elu", "tanh"])
def test_every_activation_differentiates(activation: str) -> None:
    torch.manual_seed(0)
    network = MLP(2, 3, (5, 5), activation=activation, scale=1.0).double()
    x = torch.randn(2, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    masked = MaskedMLP([1, 1], [(2, (0, 1))], 2, (5, 5), activation=activation, scale=1.0).double()
    assert torch.autograd.gradcheck(masked, (x, x.detach().clone()))


def test_fresh_outputs_are_small_and_others_are_not() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 500)
    assert MLP(8, 50)(x).abs().max() < 0.05 < MLP(8, 50, scale=1.0)(x).std()
    assert Constant(50)(x).abs().max() <= 0.01
    assert MaskedMLP([1] * 8, [(5, range(8))])(x).abs().max() < 0.05


@pytest.mark.parametrize("context", [0, 2])
@pytest.mark.parametrize("hidden", [(), (9,), (6, 13)])
def test_outputs_see_earlier_inputs_and_the_context_only(context: int, hidden: tuple[int, ...]) -> None:
    """Known from the Jacobian: zero where forbidden, and not zero wherever allowed."""
    torch.manual_seed(0)
    network = MaskedMLP([1, 2, 1], [(2, (0, 2)), (3, (1,))], context, hidden, activation="tanh", scale=1.0).double()
    rows = {0: [0, 2], 1: [4, 5, 6], 2: [1, 3]}  # (2 parameters x positions 0, 2), then (3 parameters x position 1)
    columns = {0: [0], 1: [1, 2], 2: [3]}
    x = torch.randn(4, 1, dtype=torch.float64)
    given = torch.randn(context, 1, dtype=torch.float64) if context else None
    jacobian = torch.autograd.functional.jacobian(lambda x: network(x, given)[:, 0], x)[..., 0]
    for output, out_rows in rows.items():
        for position, in_columns in columns.items():
            block = jacobian[out_rows][:, in_columns]
            assert ((block != 0) if position < output else (block == 0)).all(), (output, position)
    if given is not None:
        assert (torch.autograd.functional.jacobian(lambda c: network(x, c)[:, 0], given) != 0).all()


def test_refusals_say_what_is_needed() -> None:
    with pytest.raises(UserError, match="width of at least 5"):
        MaskedMLP([1] * 5, [(2, range(5))], context=1, hidden=(4,))
    MaskedMLP([1] * 5, [(2, range(5))], hidden=(4,))
    with pytest.raises(UserError, match="unknown activation 'sin'; known are relu"):
        MLP(1, 1, activation="sin")
    assert "3 -> 16 -> 4, relu" in repr(MLP(3, 4, (16,)))
