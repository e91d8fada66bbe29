"""A U-Net that sees images beside the one it transports."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.unet import UNet

__all__ = ["ImageConditionedUNet"]


class ImageConditionedUNet(UNet):
    r"""Images x (C, H, W) with K images of the condition (K, H, W) as further colours, pixel by pixel.

    The flat context (B, K H W + features) is what `Concatenate` makes of {"images": (K, H, W), "level": features}, or of any
    mapping whose name for the images is the first in alphabetical order: its first K H W entries are the images, the others
    steer the layers as the context of a `UNet` does.

    Arguments:
        event_shape: (C, H, W).
        images: K, 1 or more.
        features: entries of the context beside the images.
        channels: event-shaped outputs, see the heads.
        options: widths, blocks, heads, patch, two_time, maskable: see `UNet`. A mask is one of x; the images are always seen.

    Source: Palette: Image-to-Image Diffusion Models, Saharia et al. 2022, arXiv 2111.05826 (the condition as colours).

    >>> network = ImageConditionedUNet((2, 8, 8), images=3, features=1, widths=(8,))
    >>> network.context, network(torch.zeros(5, 2, 8, 8), torch.zeros(5), torch.zeros(5, 193)).shape
    (193, torch.Size([5, 1, 2, 8, 8]))
    """

    def __init__(self, event_shape: Sequence[int], images: int, features: int = 0, channels: int = 1, **options: Any) -> None:
        if images < 1 or features < 0:
            raise UserError(f"images={images}, features={features}: give one image or more, and 0 features or more")
        super().__init__(tuple(event_shape), features, channels, **options)
        self.images, self.features = images, features
        self.context = images * math.prod(self.event_shape[1:]) + features
        first = self.first
        self.first = nn.Conv2d(first.in_channels + images * self.patch**2, first.out_channels, 3, padding=1)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        if context is None or context.shape != (len(x), self.context):
            found = "none" if context is None else str(tuple(context.shape))
            images = ", ".join(map(str, (self.images, *self.event_shape[1:])))
            raise ValueError(
                f"{type(self).__name__} needs a context of shape ({len(x)}, {self.context}), images ({images}) and "
                f"{self.features} features, got {found}"
            )
        flat, rest = context.to(x.dtype).split((self.context - self.features, self.features), 1)
        seen = flat.reshape(-1, self.images, *self.event_shape[1:])
        return super().forward(torch.cat((x, seen), 1), t, rest if self.features else None, mask, s)

    def present(self, x: Tensor, mask: Tensor | None) -> list[Tensor]:
        """x without what is absent (and the mask), then the images of the condition, which are never absent."""
        own, seen = x.split((self.event_shape[0], self.images), 1)
        return [*super().present(own, mask), seen]
