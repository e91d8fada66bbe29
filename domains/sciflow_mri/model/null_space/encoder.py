"""What the null-space flow sees of a scan: a guess of the unsampled lines and feature maps in their coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.condition import Concatenate, Condition
from sciflow.flows.image import FeatureEncoder, Pyramid, level_sizes

__all__ = ["ScanEncoder"]


class ScanEncoder(FeatureEncoder):
    r"""Image (2, H, W), basis (2, L, H) and mask (H,) -> guess (2, L, W) and maps over the rows of the basis.

    A U-Net, steered by the mask, sees the image and its unsampled part. Its finest map becomes a correction c of the image, and
    the guess is E (image + c): the regression is done in the image, where it is local. The coarser maps are read off at the
    rows where the basis vectors live, as means with the weights |E|^4.

    Arguments:
        lines: number L of unsampled lines.
        size: (H, W) of the image.
        levels, features: of the flow and of the maps handed to each level.
        widths, blocks: of the U-Net, levels + 1 widths.
        scalars: how many further numbers ("scalars", such as the log noise level) steer it.
        maps: how many further images ("maps", such as the expected deviation) it sees beside the image.
        patch: 2 makes the finest level of the U-Net one of 2 x 2 pixels: several times as many weights in the same time.
    """

    def __init__(
        self,
        lines: int,
        size: Sequence[int],
        *,
        levels: int = 2,
        features: int = 16,
        widths: Sequence[int] = (32, 48, 64),
        blocks: int = 1,
        scalars: int = 0,
        maps: int = 0,
        patch: int = 1,
    ) -> None:
        height, width = size
        if patch not in (1, 2) or height % patch or width % patch:
            raise UserError(f"patch={patch} of an image of {height} x {width}: 1 or 2, and both sides multiples of it")
        super().__init__([(features, *level) for level in level_sizes(lines, width, levels)], (2, lines, width))
        if len(widths) != levels + 1:
            raise UserError(f"widths={tuple(widths)}: a flow of {levels} levels takes {levels + 1}, that of the image first")
        self.spec = {"image": (2, height, width), "basis": (2, lines, height), "mask": (height,)}
        if scalars:
            self.spec["scalars"] = (scalars,)
        if maps:
            self.spec["maps"] = (maps, height, width)
        self.check = Concatenate(self.spec)
        self.patch, self.own = patch, slice(2 - patch, 2 - patch + levels)  # the maps of the U-Net that have the flow's sizes
        self.pyramid = Pyramid((4 + maps) * patch**2, widths, blocks=blocks, context=height + scalars)
        self.to_correction = nn.Conv2d(widths[0], 2 * patch**2, 3, padding=1)
        self.to_features = nn.ModuleList(nn.Conv2d(width, features, 1) for width in tuple(widths)[self.own])
        with torch.no_grad():  # the first guess is the image itself
            self.to_correction.weight.mul_(0.1)
            nn.init.zeros_(self.to_correction.bias)  # type: ignore[arg-type]

    def forward(self, condition: Condition) -> Tensor:
        flat = self.check(condition)
        assert flat is not None
        names = sorted(self.spec)
        sizes = [torch.Size(self.spec[name]).numel() for name in names]
        dtype = self.to_correction.weight.dtype
        parts = flat.reshape(-1, flat.shape[-1]).to(dtype).split(sizes, 1)
        found = {name: part.view(-1, *self.spec[name]) for name, part in zip(names, parts, strict=True)}
        image, basis = found["image"], found["basis"]
        steer = torch.cat([found["mask"], *([found["scalars"]] if "scalars" in found else [])], 1)
        seen = [image, _back(basis, _onto(basis, image)), *([found["maps"]] if "maps" in found else [])]
        levels = self.pyramid(nn.functional.pixel_unshuffle(torch.cat(seen, 1), self.patch), steer)
        with _exactly(image.device.type):  # bfloat16 is good enough for features, not for the guess
            levels = [level.to(dtype) for level in levels]
            correction = nn.functional.pixel_shuffle(self.to_correction(levels[0]), self.patch)
            weights = basis.square().sum(1).square()
            weights = weights / weights.sum(2, keepdim=True)
            outputs = [_onto(basis, image + correction).flatten(1)]
            for level, (convolution, map_) in enumerate(zip(self.to_features, levels[self.own], strict=True)):
                outputs.append(_read(convolution(map_), weights, self.maps[level], 2 ** (level + 1)).flatten(1))
        return torch.cat(outputs, 1).reshape(*flat.shape[:-1], self.features)


def _exactly(device: str) -> AbstractContextManager[object]:
    known = torch.amp.autocast_mode.is_autocast_available(device)  # not on "meta"
    return torch.autocast(device, enabled=False) if known else nullcontext()


def _onto(basis: Tensor, image: Tensor) -> Tensor:
    """E x (B, 2, L, W)."""
    (a, b), (x, y) = basis.unbind(1), image.unbind(1)
    return torch.stack((a @ x - b @ y, a @ y + b @ x), 1)


def _back(basis: Tensor, w: Tensor) -> Tensor:
    """E^H w (B, 2, H, W)."""
    (a, b), (x, y) = basis.transpose(2, 3).unbind(1), w.unbind(1)
    return torch.stack((a @ x + b @ y, a @ y - b @ x), 1)


def _read(map_: Tensor, weights: Tensor, shape: Sequence[int], step: int) -> Tensor:
    """A map (B, F, H', W') at the rows of a level: the weights (B, L, H) of the basis summed over `step` rows of the image and
    averaged over the L / L' basis vectors that a row of the level holds."""
    _, rows, width = shape
    padded = nn.functional.pad(weights, (0, step * map_.shape[2] - weights.shape[2]))
    coarse = padded.unflatten(2, (-1, step)).sum(3).unflatten(1, (rows, -1)).mean(2)
    found = coarse.unsqueeze(1) @ map_
    if found.shape[3] == width:
        return found
    return nn.functional.interpolate(found, size=(rows, width), mode="bilinear", align_corners=False)
