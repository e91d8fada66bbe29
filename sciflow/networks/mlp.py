"""Multilayer perceptrons on features-first columns."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError

__all__ = ["ACTIVATIONS", "MLP", "Constant", "activation_of"]

# relu works in place on the fresh output of a product; the others need their input for the derivative
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu_,
    "silu": nn.functional.silu,
    "gelu": nn.functional.gelu,
    "elu": nn.functional.elu,
    "tanh": torch.tanh,
}


def activation_of(name: str) -> Callable[[Tensor], Tensor]:
    """The activation of that name; raises `UserError` naming the known ones."""
    if name not in ACTIVATIONS:
        raise UserError(f"unknown activation {name!r}; known are {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class MLP(nn.Module):
    r"""h_0 = inputs, h_{k+1} = activation(W_k h_k + b_k), output = W_K h_K + b_K on columns (features, rows).

    Features-first keeps every product in the layout that BLAS wants (weight times columns) and makes the output of
    shape (parameters x features, rows) viewable as (parameters, features, rows) without a copy.
    The last layer starts small (`scale`), so that a fresh flow is near the identity.

    Columns of another dtype are cast to that of the weights; the caller casts the output back.

    >>> network = MLP(3, 4, hidden=(16,))
    >>> network(torch.randn(3, 5)).shape
    torch.Size([4, 5])
    """

    def __init__(
        self, inputs: int, outputs: int, hidden: Sequence[int] = (128, 128), *, activation: str = "relu", scale: float = 1e-2
    ) -> None:
        super().__init__()
        self.sizes = (inputs, *hidden, outputs)
        self.activation = activation
        self._activate = activation_of(activation)
        pairs = list(zip(self.sizes[:-1], self.sizes[1:], strict=True))
        self.weights = nn.ParameterList([nn.Parameter(torch.empty(fan_out, fan_in)) for fan_in, fan_out in pairs])
        self.biases = nn.ParameterList([nn.Parameter(torch.empty(fan_out)) for _, fan_out in pairs])
        self.scale = scale
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Uniform in +-1 / sqrt(fan-in); the last layer is smaller by `scale`."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            limit = 1 / math.sqrt(max(weight.shape[1], 1))
            nn.init.uniform_(weight, -limit, limit)
            nn.init.uniform_(bias, -limit, limit)
        with torch.no_grad():
            self.weights[-1].mul_(self.scale)
            self.biases[-1].mul_(self.scale)

    def extra_repr(self) -> str:
        return " -> ".join(map(str, self.sizes)) + f", {self.activation}"

    def forward(self, inputs: Tensor) -> Tensor:
        layers = list(zip(self.weights, self.biases, strict=True))
        columns = inputs.to(layers[0][0].dtype)
        for weight, bias in layers[:-1]:
            columns = self._activate(torch.addmm(bias.unsqueeze(1), weight, columns))
        weight, bias = layers[-1]
        return torch.addmm(bias.unsqueeze(1), weight, columns)


class Constant(nn.Module):
    """Free parameters in the place of a network that has nothing to look at: the same output for every row.

    >>> Constant(4)(torch.empty(0, 5)).shape
    torch.Size([4, 5])
    """

    def __init__(self, outputs: int, *, scale: float = 1e-2) -> None:
        super().__init__()
        self.scale = scale
        self.bias = nn.Parameter(torch.empty(outputs))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.uniform_(self.bias, -self.scale, self.scale)

    def extra_repr(self) -> str:
        return f"{len(self.bias)} free parameters"

    def forward(self, inputs: Tensor) -> Tensor:
        return self.bias.unsqueeze(1).expand(-1, inputs.shape[1])
