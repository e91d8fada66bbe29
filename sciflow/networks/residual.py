"""Residual multilayer perceptron steered by time and context."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sciflow.networks.embedding import Embedding, Modulation
from sciflow.networks.mlp import activation_of
from sciflow.networks.time_network import TimeNetwork
from sciflow.shapes import shape_of

__all__ = ["ResidualMLP"]


class ResidualMLP(TimeNetwork):
    r"""h <- h + g W_2 act(W_1 ((1 + a) norm(h) + b)), with shift b, scale a and gate g from time and context.

    Arguments:
        event_shape: of the rows, flattened inside; an integer D means (D,).
        context: number of context features.
        channels: event-shaped outputs, see the heads.
        width: of the residual stream.
        blocks: number of residual blocks.
        two_time: whether a second time s enters.
        maskable: whether the network sees which features are absent.

    Source: Deep Residual Learning, He et al. 2015, arXiv 1512.03385; modulation as in Scalable Diffusion Models with
    Transformers, Peebles and Xie 2022, arXiv 2212.09748.

    >>> ResidualMLP(2, width=16, blocks=1)(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 1, 2])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        context: int = 0,
        channels: int = 1,
        *,
        width: int = 256,
        blocks: int = 4,
        activation: str = "silu",
        two_time: bool = False,
        maskable: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        self.context, self.channels, self.two_time, self.maskable = context, channels, two_time, maskable
        size = math.prod(self.event_shape)
        self.embedding = Embedding(width, context, two_time=two_time)
        self.first = nn.Linear((2 if maskable else 1) * size, width)
        self.blocks = nn.ModuleList(_Block(width, activation) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, channels * size)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        embedding = self.embedding(t.to(x.dtype), context, None if s is None else s.to(x.dtype))
        h = self.first(torch.cat([part.flatten(1) for part in self.present(x, mask)], 1))
        for block in self.blocks:
            h = block(h, embedding)
        return self.last(self.norm(h)).reshape(-1, self.channels, *self.event_shape)


class _Block(nn.Module):
    def __init__(self, width: int, activation: str) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = Modulation(width, width, 3)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.activate = activation_of(activation)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale, gate = self.modulation(embedding, h)
        branch = self.second(self.activate(self.first(self.norm(h) * (1 + scale) + shift)))
        return h + (1 + gate) * branch
