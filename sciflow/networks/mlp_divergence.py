"""The exact divergence of a multilayer perceptron by products of its weight matrices, without a backward pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

__all__ = ["mlp_and_divergence"]

_PIECE = 2**18  # entries


def mlp_and_divergence(
    inputs: Tensor, features: int, weights: Sequence[Tensor], biases: Sequence[Tensor], activate: Callable[[Tensor], Tensor]
) -> tuple[Tensor, Tensor]:
    r"""Outputs (B, D) and the trace (B,) of their Jacobian with respect to the first D = `features` inputs.

    With the derivatives d_k (B, H_k) of the hidden layers, J = W_K D_{K-1} ... D_1 W_1. One hidden layer:

        tr J = sum_i d_1i (W_1 W_2)_ii;      two:      tr J = d_2^T (W_2 * (W_1 W_3)^T) d_1,

    as cheap as one more layer. With more of them D columns are pushed from the input and D rows from the output; they meet in
    the middle, which takes D products less than a Jacobian. Everything can be differentiated again.

    >>> W = [torch.randn(5, 3), torch.randn(2, 5)]
    >>> x = torch.randn(1, 3)
    >>> out, trace = mlp_and_divergence(x, 2, W, [torch.zeros(5), torch.zeros(2)], torch.tanh)
    >>> J = torch.autograd.functional.jacobian(lambda x: torch.tanh(x @ W[0].T) @ W[1].T, x)[0, :, 0, :2]
    >>> torch.allclose(trace, J.trace().unsqueeze(0), atol=1e-5)
    True
    """
    h, derivatives = inputs, []
    for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
        h, derivative = _with_derivative(torch.addmm(bias, h, weight.T), activate)
        derivatives.append(derivative)
    out = torch.addmm(biases[-1], h, weights[-1].T)
    first, last = weights[0][:, :features], weights[-1]
    if not derivatives:
        return out, (first.diagonal().sum()).expand(len(inputs))
    if len(derivatives) == 1:
        return out, derivatives[0] @ (first * last.T).sum(1)
    if len(derivatives) == 2:
        return out, ((derivatives[0] @ (weights[1] * (first @ last).T).T) * derivatives[1]).sum(1)
    # rows of a batch are taken in pieces whose D columns stay in the cache
    piece = max(1, _PIECE // (features * max(weight.shape[0] for weight in weights)))
    pieces = zip(*(derivative.split(piece) for derivative in derivatives), strict=True)
    return out, torch.cat([_meeting(part, weights, first) for part in pieces])


def _meeting(derivatives: Sequence[Tensor], weights: Sequence[Tensor], first: Tensor) -> Tensor:
    """Columns d h / d x (B, D, H) and rows d out / d h (B, D, H), both multiplied towards the middle, where they meet."""
    middle = (len(derivatives) - 1) // 2
    columns = derivatives[0].unsqueeze(1) * first.T
    for derivative, weight in zip(derivatives[1 : middle + 1], weights[1 : middle + 1], strict=True):
        columns = derivative.unsqueeze(1) * (columns @ weight.T)
    rows = derivatives[-1].unsqueeze(1) * weights[-1]
    for number in range(len(derivatives) - 1, middle + 1, -1):
        rows = derivatives[number - 1].unsqueeze(1) * (rows @ weights[number])
    return ((columns @ weights[middle + 1].T) * rows).flatten(1).sum(1)


def _with_derivative(z: Tensor, activate: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    if activate is torch.nn.functional.silu:
        gate = torch.sigmoid(z)
        value = z * gate
        return value, gate + value * (1 - gate)
    if activate is torch.tanh:
        value = torch.tanh(z)
        return value, 1 - value.square()
    keep = torch.is_grad_enabled()
    with torch.enable_grad():
        point = z if z.requires_grad else z.detach().requires_grad_()
        value = activate(point.clone())  # some work in place
        (derivative,) = torch.autograd.grad(value.sum(), point, create_graph=keep, retain_graph=True)
    return (value, derivative) if keep else (value.detach(), derivative.detach())
