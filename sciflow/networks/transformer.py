"""Transformer over the points of an event, steered by time and context."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.attention import Attention
from sciflow.networks.embedding import Embedding, Modulation
from sciflow.networks.time_network import TimeNetwork
from sciflow.shapes import shape_of

__all__ = ["Transformer"]


class Transformer(TimeNetwork):
    r"""Events of N points with d features, (N, d), as N tokens; time and context modulate every layer.

    Points all of whose features are absent take no part. Without `positions` the network is permutation-equivariant: the
    points are a set. A vector (D,) is D tokens of one feature and needs positions.

    Arguments:
        event_shape: (N, d), or D for (D,).
        context: number of context features.
        channels: event-shaped outputs, see the heads.
        width, blocks, heads: of the transformer.
        positions: whether a point knows its place; by default for vectors only.
        two_time: whether a second time s enters.
        maskable: whether the network sees which features of a point are absent.

    Source: Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762; Scalable Diffusion Models with
    Transformers, Peebles and Xie 2022, arXiv 2212.09748.

    >>> Transformer((4, 3), width=16, blocks=1, heads=2)(torch.zeros(5, 4, 3), torch.zeros(5)).shape
    torch.Size([5, 1, 4, 3])
    """

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        context: int = 0,
        channels: int = 1,
        *,
        width: int = 64,
        blocks: int = 3,
        heads: int = 4,
        positions: bool | None = None,
        two_time: bool = False,
        maskable: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        if len(self.event_shape) > 2:
            raise UserError(f"a transformer takes events (N, d) or (D,), not {tuple(self.event_shape)}: use UNet for images")
        self.context, self.channels, self.two_time, self.maskable = context, channels, two_time, maskable
        count, size = self.event_shape if len(self.event_shape) == 2 else (self.event_shape[0], 1)
        if positions is None:
            positions = len(self.event_shape) == 1
        self.embedding = Embedding(width, context, two_time=two_time)
        self.first = nn.Linear((2 if maskable else 1) * size, width)
        self.positions = nn.Parameter(torch.randn(count, width) * 0.5) if positions else None
        self.blocks = nn.ModuleList(_Block(width, heads) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, channels * size)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        embedding = self.embedding(t.to(x.dtype), context, None if s is None else s.to(x.dtype))
        rows, count = x.shape[0], x.shape[1]
        h = self.first(torch.cat([part.reshape(rows, count, -1) for part in self.present(x, mask)], 2))
        if self.positions is not None:
            h = h + self.positions
        tokens = None if mask is None else mask.expand_as(x).reshape(rows, count, -1).any(2)
        for block in self.blocks:
            h = block(h, embedding, tokens)
        out = self.last(self.norm(h)).reshape(rows, count, self.channels, -1)
        return out.transpose(1, 2).reshape(rows, self.channels, *self.event_shape)


class _Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = Modulation(width, width, 6)
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, embedding: Tensor, present: Tensor | None) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(embedding, h)
        h = h + (1 + gate) * self.attention(self.norms[0](h) * (1 + scale) + shift, present)
        return h + (1 + gate2) * self.perceptron(self.norms[1](h) * (1 + scale2) + shift2)
