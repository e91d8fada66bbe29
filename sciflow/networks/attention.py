"""Self-attention over tokens, some of which may be absent."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sciflow.errors import UserError

__all__ = ["Attention"]


class Attention(nn.Module):
    """Multi-head self-attention on tokens (B, N, width); those with present (B, N) False are attended to by none.

    Written in plain products instead of a fused kernel: the divergence of a velocity and its training take second
    derivatives and forward-mode ones, which fused attention lacks.

    Source: Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        if width % heads:
            raise UserError(f"width={width} is not divisible by heads={heads}")
        self.heads = heads
        self.inner = nn.Linear(width, 3 * width)
        self.outer = nn.Linear(width, width)

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> Tensor:
        rows, count, width = tokens.shape
        query, key, value = self.inner(tokens).reshape(rows, count, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        scores = query @ key.transpose(-1, -2) / math.sqrt(width // self.heads)
        if present is not None:
            # finite, not -inf: in a row without any present token the softmax stays defined
            scores = scores.masked_fill(~present[:, None, None, :], torch.finfo(scores.dtype).min / 2)
        mixed = scores.softmax(-1).to(value.dtype) @ value
        return self.outer(mixed.transpose(1, 2).reshape(rows, count, width))
