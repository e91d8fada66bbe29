"""Networks of time: the contract of velocity networks, and the plain multilayer perceptron."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.networks.mlp import activation_of
from sciflow.networks.mlp_divergence import mlp_and_divergence
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of

__all__ = ["TimeMLP", "TimeNetwork", "expand_time"]


def expand_time(t: Tensor, x: Tensor) -> Tensor:
    """Times () or (B,) as (B, 1, ..., 1), to be combined with rows x (B, *event): never along another axis, B = D included.

    >>> expand_time(torch.zeros(3), torch.zeros(3, 3)).shape
    torch.Size([3, 1])
    """
    if t.dim() > 1 or (t.dim() == 1 and t.shape[0] != x.shape[0]):
        raise ValueError(f"times have shape {tuple(t.shape)}, expected () or ({x.shape[0]},) for rows {tuple(x.shape)}")
    return t.expand(x.shape[0]).reshape(-1, *[1] * (x.dim() - 1))


class TimeNetwork(nn.Module, Recorded, ABC):
    """(x, t, context, mask, s) -> (B, channels, *event_shape): what a transport calls once per evaluation.

    Rows x (B, *event_shape), times t (B,), context (B, context) or None, mask (B, *event_shape) boolean or None. Two-time
    networks (`two_time`) also take the other time s (B,). Absent features (mask False) are 0 in x and must have no
    influence on present ones. A `maskable` network sees which features are absent; without a mask all are present.
    """

    event_shape: torch.Size
    context: int
    channels: int
    two_time: bool = False
    maskable: bool = False

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor: ...

    @property
    def divergence_by_hand(self) -> Any:
        """`output_and_divergence` where the class has it and no subclass has a `forward` that it does not know; else None."""
        for kind in type(self).__mro__:
            if "output_and_divergence" in vars(kind):
                return getattr(self, "output_and_divergence")  # noqa: B009
            if "forward" in vars(kind):
                return None
        return None

    def check_times(self, s: Tensor | None) -> None:
        """Raises `ValueError` if the second time is missing or superfluous."""
        if (s is not None) != self.two_time:
            problem = "needs the other time s" if self.two_time else "is a one-time network but got a second time s"
            raise ValueError(f"{type(self).__name__} {problem}")

    def present(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """x without what is absent and, in a `maskable` network, the mask as numbers."""
        if not self.maskable:
            return [x if mask is None else x * mask]
        return [x, torch.ones_like(x)] if mask is None else [x * mask, mask.to(x.dtype).expand_as(x)]

    def inputs(
        self, x: Tensor, t: Tensor, context: Tensor | None, s: Tensor | None, mask: Tensor | None = None
    ) -> list[Tensor]:
        """Flattened x, [mask], t, [s] and context as columns to be concatenated; see `check_times` and `present`."""
        self.check_times(s)
        parts = [part.flatten(1) for part in self.present(x, mask)]
        parts.append(t.to(x.dtype).unsqueeze(1))
        if s is not None:
            parts.append(s.to(x.dtype).unsqueeze(1))
        if context is not None:
            parts.append(context)
        return parts


class TimeMLP(TimeNetwork):
    r"""Fully connected layers on (x, [mask], t, [s], context), the times as plain numbers.

    Arguments:
        event_shape: of the rows; an integer D means (D,).
        context: number of context features.
        channels: event-shaped outputs, see the heads.
        hidden: widths of the hidden layers.
        two_time: whether a second time s enters.
        maskable: whether the network sees which features are absent.

    >>> TimeMLP(2, channels=1)(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 1, 2])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        context: int = 0,
        channels: int = 1,
        *,
        hidden: Sequence[int] = (256, 256, 256),
        activation: str = "silu",
        two_time: bool = False,
        maskable: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        self.context, self.channels, self.two_time, self.maskable = context, channels, two_time, maskable
        size = math.prod(self.event_shape)
        sizes = [(2 if maskable else 1) * size + context + (2 if two_time else 1), *hidden, channels * size]
        self.layers = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activate = activation_of(activation)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        h = torch.cat(self.inputs(x, t, context, s, mask), 1)
        *hidden, last = self.layers  # a slice would be a new module in every step
        for layer in hidden:
            h = self.activate(layer(h))
        return last(h).reshape(-1, self.channels, *self.event_shape)

    def output_and_divergence(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, s: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """The output (B, 1, *event_shape) and its divergence (B,) by products of weights: see `mlp_and_divergence`."""
        if self.channels != 1:
            raise ValueError(f"a network with {self.channels} channels has no divergence")
        layers: Sequence[nn.Linear] = list(self.layers)  # type: ignore[arg-type]
        weights, biases = [layer.weight for layer in layers], [layer.bias for layer in layers]
        inputs = torch.cat(self.inputs(x, t, context, s), 1)
        out, divergence = mlp_and_divergence(inputs, math.prod(self.event_shape), weights, biases, self.activate)
        return out.reshape(-1, 1, *self.event_shape), divergence
