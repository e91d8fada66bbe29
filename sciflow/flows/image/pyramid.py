"""A U-Net that gives a feature map per level."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.embedding import Modulation

__all__ = ["Pyramid"]


class Pyramid(nn.Module):
    r"""Images (B, C, H, W) of any size to one feature map per level, finest first, each seen in the light of all coarser ones.

    Level l has ceil(H / 2^l) x ceil(W / 2^l) pixels.

    Arguments:
        channels: of the images.
        widths: feature maps of the levels, finest first; multiples of 4.
        blocks: residual blocks of each level, on the way down and on the way up.
        context: number of features of a vector (B, context) that steers every block; 0 for none.

    Source: U-Net, Ronneberger et al. 2015, arXiv 1505.04597.

    >>> [tuple(map_.shape) for map_ in Pyramid(2, widths=(8, 16))(torch.zeros(3, 2, 5, 8))]
    [(3, 8, 5, 8), (3, 16, 3, 4)]
    """

    def __init__(self, channels: int, widths: Sequence[int] = (16, 32, 48), *, blocks: int = 1, context: int = 0) -> None:
        super().__init__()
        if not widths or any(width % 4 or width < 4 for width in widths):
            raise UserError(f"widths={tuple(widths)}: give at least one level, each a multiple of 4")
        if blocks < 1:
            raise UserError(f"blocks={blocks}: give at least one per level")
        self.widths = tuple(widths)
        size = widths[-1]
        self.embedding = nn.Sequential(nn.Linear(context, size), nn.SiLU(), nn.Linear(size, size)) if context else None
        steered = size if context else 0
        self.first = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.coarser = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        self.finer = nn.ModuleList(nn.Conv2d(b, a, 3, padding=1) for a, b in pairwise(widths))
        self.down = nn.ModuleList(nn.ModuleList(_Block(w, steered) for _ in range(blocks)) for w in widths)
        self.join = nn.ModuleList(nn.Conv2d(2 * w, w, 1) for w in widths[:-1])
        self.up = nn.ModuleList(nn.ModuleList(_Block(w, steered) for _ in range(blocks)) for w in widths[:-1])

    def forward(self, x: Tensor, context: Tensor | None = None) -> list[Tensor]:
        steer = None if self.embedding is None else nn.functional.silu(self.embedding(context))
        h = self.first(x)
        maps: list[Tensor] = []
        for level, blocks in enumerate(self.down):
            h = self.coarser[level - 1](h) if level else h
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, steer)
            maps.append(h)
        for level in reversed(range(len(maps) - 1)):
            kept = maps[level]
            # each pixel four times, cut to the size it came from: an odd one is not twice the coarser one
            h = maps[level + 1].repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : kept.shape[-2], : kept.shape[-1]]
            h = self.join[level](torch.cat((self.finer[level](h), kept), 1))
            for block in self.up[level]:  # type: ignore[attr-defined]
                h = block(h, steer)
            maps[level] = h
        return maps


class _Block(nn.Module):
    def __init__(self, width: int, steered: int) -> None:
        super().__init__()
        groups = next(count for count in (8, 4, 2, 1) if width % (4 * count) == 0)
        self.norms = nn.ModuleList(nn.GroupNorm(groups, width) for _ in range(2))
        self.convolutions = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(2))
        self.modulation = Modulation(steered, width, 2) if steered else None

    def forward(self, h: Tensor, steer: Tensor | None) -> Tensor:
        branch = self.norms[1](self.convolutions[0](nn.functional.silu(self.norms[0](h))))
        if self.modulation is not None and steer is not None:
            shift, scale = self.modulation(steer, h, channels_first=True)
            branch = branch * (1 + scale) + shift
        return h + self.convolutions[1](nn.functional.silu(branch))
