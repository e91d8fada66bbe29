"""Encoders of image flows: a condition becomes a first guess of the event and a feature map per level."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.condition import Concatenate, Condition, Encoder
from sciflow.flows.image.pyramid import Pyramid
from sciflow.flows.image.squeezing import squeeze_factors
from sciflow.shapes import shape_of

__all__ = ["FeatureEncoder", "PyramidEncoder", "level_sizes"]


def level_sizes(height: int, width: int, levels: int) -> list[tuple[int, int]]:
    """Pixels of each level of an image flow: even sides are halved, odd ones stay.

    >>> level_sizes(48, 64, 3)
    [(24, 32), (12, 16), (6, 8)]
    """
    sizes = []
    for _ in range(levels):
        down, across = squeeze_factors(height, width)
        height, width = height // down, width // across
        sizes.append((height, width))
    return sizes


class FeatureEncoder(Encoder):
    """The contract: the context is, flattened and one after the other, a guess of the event (if `guess`) and the maps.

    Arguments:
        maps: shape (F, H, W) of the feature map of each level of the flow, finest first.
        guess: shape of the guess, which the flow subtracts from the event before anything else; None for none.
    """

    def __init__(self, maps: Sequence[tuple[int, int, int]], guess: Sequence[int] | None = None) -> None:
        super().__init__()
        self.maps = [tuple(shape) for shape in maps]
        self.guess = None if guess is None else tuple(guess)
        self.features = sum(math.prod(shape) for shape in self._shapes())

    def _shapes(self) -> list[tuple[int, ...]]:
        return [*([] if self.guess is None else [self.guess]), *self.maps]

    def unpack(self, context: Tensor) -> tuple[Tensor | None, list[Tensor]]:
        """The guess (B, *guess) or None, and the maps (B, F, H, W), as views of a context (B, features)."""
        parts = context.split([math.prod(shape) for shape in self._shapes()], 1)
        found = [part.view(len(context), *shape) for part, shape in zip(parts, self._shapes(), strict=True)]
        return (None, found) if self.guess is None else (found[0], found[1:])


class PyramidEncoder(FeatureEncoder):
    """A condition image (..., C, H, W) through a U-Net; its maps are brought to the sizes of the flow's levels.

    With `guess` the flow learns the deviation from what the U-Net predicts: a regression that the likelihood trains along.

    Arguments:
        image: shape (C, H, W) of the condition.
        event: shape of the flow's events.
        levels: of the flow.
        features: maps handed to each level.
        widths, blocks: of the U-Net, whose level 0 has the size of the condition; levels + 1 widths.

    >>> encoder = PyramidEncoder((1, 8, 8), (1, 8, 8), levels=1, features=4, widths=(8, 8))
    >>> encoder(torch.zeros(5, 1, 8, 8)).shape[-1] == 8 * 8 + 4 * 4 * 4
    True
    """

    def __init__(
        self,
        image: Sequence[int],
        event: Sequence[int],
        *,
        levels: int,
        features: int = 16,
        widths: Sequence[int] = (16, 32, 48),
        blocks: int = 1,
        guess: bool = True,
    ) -> None:
        shape, event = tuple(shape_of(tuple(image))), tuple(event)
        if len(shape) != 3 or len(event) != 3:
            raise UserError(f"condition and events are images (C, H, W), got shapes {shape} and {event}")
        if len(widths) != levels + 1:
            raise UserError(f"widths={tuple(widths)}: a flow of {levels} levels takes {levels + 1}, that of the image first")
        sizes = level_sizes(event[1], event[2], levels)
        super().__init__([(features, *size) for size in sizes], event if guess else None)
        self.check = Concatenate({"image": shape})
        self.image = shape
        self.pyramid = Pyramid(shape[0], widths, blocks=blocks)
        self.to_guess = nn.Conv2d(widths[0], event[0], 3, padding=1) if guess else None
        self.to_features = nn.ModuleList(nn.Conv2d(width, features, 1) for width in widths[1:])

    def forward(self, condition: Condition) -> Tensor:
        flat = self.check({"image": condition} if isinstance(condition, Tensor) else condition)
        assert flat is not None
        image = flat.reshape(-1, *self.image).to(self.pyramid.first.weight.dtype)
        finest, *coarser = self.pyramid(image)
        parts = [_sized(convolution(map_), shape[1:]) for convolution, map_, shape in zip(
            self.to_features, coarser, self.maps, strict=True
        )]  # fmt: skip
        if self.to_guess is not None and self.guess is not None:
            parts.insert(0, _sized(self.to_guess(finest), self.guess[1:]))
        return torch.cat([part.flatten(1) for part in parts], 1).reshape(*flat.shape[:-1], self.features)


def _sized(map_: Tensor, size: Sequence[int]) -> Tensor:
    if tuple(map_.shape[-2:]) == tuple(size):
        return map_
    return nn.functional.interpolate(map_, size=tuple(size), mode="bilinear", align_corners=False)
