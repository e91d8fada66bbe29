"""A small U-Net for images, steered by time and context."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.attention import Attention
from sciflow.networks.embedding import Embedding, Modulation
from sciflow.networks.time_network import TimeNetwork
from sciflow.shapes import shape_of

__all__ = ["UNet"]


class UNet(TimeNetwork):
    r"""Images (C, H, W) of any size: convolutions at ever coarser resolution and back, joined across at each level.

    Arguments:
        event_shape: (C, H, W). A level halves H and W, rounding up.
        context: number of context features.
        channels: event-shaped outputs, see the heads.
        widths: feature maps of the levels, finest first; multiples of 4.
        blocks: residual blocks of each level, on the way down and on the way up.
        heads: of the attention over the pixels of the coarsest level; 0 for none.
        patch: squares of so many pixels a side become the colours of one (pixel unshuffle): the finest level is that much
            coarser, and as much cheaper. H and W must be multiples of it.
        two_time: whether a second time s enters.
        maskable: whether the network sees which pixels are absent.

    Source: U-Net, Ronneberger et al. 2015, arXiv 1505.04597; Denoising Diffusion Probabilistic Models, Ho et al. 2020,
    arXiv 2006.11239.

    >>> UNet((1, 5, 7), widths=(8, 16))(torch.zeros(3, 1, 5, 7), torch.zeros(3)).shape
    torch.Size([3, 1, 1, 5, 7])
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        context: int = 0,
        channels: int = 1,
        *,
        widths: Sequence[int] = (32, 64),
        blocks: int = 1,
        heads: int = 1,
        patch: int = 1,
        two_time: bool = False,
        maskable: bool = False,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        if len(self.event_shape) != 3:
            raise UserError(f"a U-Net takes images (C, H, W), not events of shape {tuple(self.event_shape)}")
        if not widths or any(width % 4 for width in widths):
            raise UserError(f"widths={tuple(widths)}: give at least one level, each a multiple of 4")
        if patch < 1 or any(size % patch for size in self.event_shape[1:]):
            raise UserError(f"patch={patch}: H and W of {tuple(self.event_shape)} must be multiples of it")
        self.context, self.channels, self.two_time, self.maskable = context, channels, two_time, maskable
        self.patch = patch
        colours, size = self.event_shape[0] * patch**2, 4 * widths[0]
        self.embedding = Embedding(size, context, two_time=two_time)
        self.first = nn.Conv2d((2 if maskable else 1) * colours, widths[0], 3, padding=1)
        self.down, self.up, self.coarser, self.finer = nn.ModuleList(), nn.ModuleList(), nn.ModuleList(), nn.ModuleList()
        for level, width in enumerate(widths):
            self.down.append(nn.ModuleList(_Block(width, width, size) for _ in range(blocks)))
            if level + 1 < len(widths):
                self.coarser.append(nn.Conv2d(width, widths[level + 1], 3, stride=2, padding=1))
                self.finer.append(nn.Conv2d(widths[level + 1], width, 3, padding=1))
                self.up.append(nn.ModuleList(_Block(2 * width if k == 0 else width, width, size) for k in range(blocks)))
        self.norm = _Norm(widths[-1]) if heads else None
        self.attention = Attention(widths[-1], heads) if heads else None
        self.middle = _Block(widths[-1], widths[-1], size)
        self.last_norm = _Norm(widths[0])
        self.last = nn.Conv2d(widths[0], channels * colours, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        embedding = self.embedding(t.to(x.dtype), context, None if s is None else s.to(x.dtype))
        h = self.first(nn.functional.pixel_unshuffle(torch.cat(self.present(x, mask), 1), self.patch))
        across = []
        for level, blocks in enumerate(self.down):
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
            if level < len(self.coarser):
                across.append(h)
                h = self.coarser[level](h)
        if self.attention is not None and self.norm is not None:
            pixels = self.norm(h).flatten(2).transpose(1, 2)
            h = h + self.attention(pixels).transpose(1, 2).reshape(h.shape)
        h = self.middle(h, embedding)
        for finer, blocks, kept in zip(reversed(self.finer), reversed(self.up), reversed(across), strict=True):
            # each pixel four times, cut to the size it came from: an odd one is not twice the coarser one
            h = h.repeat_interleave(2, -2).repeat_interleave(2, -1)[..., : kept.shape[-2], : kept.shape[-1]]
            h = torch.cat((finer(h), kept), 1)
            for block in blocks:  # type: ignore[attr-defined]
                h = block(h, embedding)
        out = nn.functional.pixel_shuffle(self.last(nn.functional.silu(self.last_norm(h))), self.patch)
        return out.reshape(-1, self.channels, *self.event_shape)


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, size: int) -> None:
        super().__init__()
        self.norms = nn.ModuleList((_Norm(inputs), _Norm(outputs)))
        self.modulation = Modulation(size, outputs, 2)
        self.convolutions = nn.ModuleList((nn.Conv2d(inputs, outputs, 3, padding=1), nn.Conv2d(outputs, outputs, 3, padding=1)))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, h: Tensor, embedding: Tensor) -> Tensor:
        shift, scale = self.modulation(embedding, h, channels_first=True)
        branch = self.convolutions[0](nn.functional.silu(self.norms[0](h)))
        branch = self.norms[1](branch) * (1 + scale) + shift
        return self.skip(h) + self.convolutions[1](nn.functional.silu(branch))


class _Norm(nn.Module):
    """Group normalisation over groups of at least four feature maps: an image of one pixel still varies within a group.

    Through layer normalisation: torch's `group_norm` fails in second derivatives of batched products (torch 2.13), which the
    training of an exact divergence takes.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.groups = next(count for count in (8, 4, 2, 1) if width % (4 * count) == 0)
        self.weight, self.bias = nn.Parameter(torch.ones(width, 1, 1)), nn.Parameter(torch.zeros(width, 1, 1))

    def forward(self, h: Tensor) -> Tensor:
        grouped = h.reshape(len(h), self.groups, -1)
        return nn.functional.layer_norm(grouped, grouped.shape[-1:]).reshape(h.shape) * self.weight + self.bias
