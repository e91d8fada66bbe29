"""Space into channels: plain, or as Haar wavelets."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.image.layer import ImageLayer

__all__ = ["Squeeze", "squeeze_factors"]


class Squeeze(ImageLayer):
    r"""(C, H, W) -> (f_h f_w C, H / f_h, W / f_w), an orthogonal map: log |det| = 0.

    Plain, the pixels of a block become channels. With `haar` the block is also turned into its mean and its differences,
    per axis (a + b) / sqrt 2 and (a - b) / sqrt 2: the first C channels are the coarse image.

    Arguments:
        factors: of height and width, each 1 or 2.
        haar: wavelets instead of pixels.

    Sources: Density estimation using Real NVP, Dinh et al. 2016, arXiv 1605.08803; Guided Image Generation with Conditional
    Invertible Neural Networks, Ardizzone et al. 2019, arXiv 1907.02392.

    >>> y, _ = Squeeze((2, 2), haar=True)(torch.ones(1, 1, 2, 2))
    >>> y.flatten()
    tensor([2.0000, 0.0000, 0.0000, 0.0000])
    """

    def __init__(self, factors: tuple[int, int] = (2, 2), *, haar: bool = False) -> None:
        super().__init__()
        if any(factor not in (1, 2) for factor in factors):
            raise UserError(f"a squeeze by {tuple(factors)}: each factor is 1 or 2")
        self.factors, self.haar = (factors[0], factors[1]), haar

    def extra_repr(self) -> str:
        return f"{self.factors}{', haar' if self.haar else ''}"

    def forward(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, channels, height, width = x.shape
        down, across = self.factors
        if height % down or width % across:
            raise ValueError(f"x has shape {tuple(x.shape)}: {height} x {width} pixels do not divide by {self.factors}")
        blocks = x.reshape(rows, channels, height // down, down, width // across, across).permute(0, 3, 5, 1, 2, 4)
        return self._turned(blocks).reshape(rows, -1, height // down, width // across), x.new_zeros(rows)

    def inverse(self, z: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        rows, channels, height, width = z.shape
        down, across = self.factors
        blocks = self._turned(z.reshape(rows, down, across, channels // (down * across), height, width))
        x = blocks.permute(0, 3, 4, 1, 5, 2).reshape(rows, -1, height * down, width * across)
        return x, z.new_zeros(rows)

    def _turned(self, blocks: Tensor) -> Tensor:
        """The wavelets of blocks (B, f_h, f_w, ...), their own inverse."""
        if self.haar:
            for axis, factor in zip((1, 2), self.factors, strict=True):
                if factor == 2:
                    first, second = (blocks * math.sqrt(0.5)).unbind(axis)
                    blocks = torch.stack((first + second, first - second), axis)
        return blocks


def squeeze_factors(height: int, width: int) -> tuple[int, int]:
    """2 for an even side, 1 for an odd one: odd images need no padding, which would not be invertible.

    >>> squeeze_factors(48, 45)
    (2, 1)
    """
    return 1 + (height % 2 == 0), 1 + (width % 2 == 0)
