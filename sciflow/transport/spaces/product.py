"""Spaces side by side."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.spaces.base import Space

__all__ = ["ProductSpace"]


class ProductSpace(Space):
    r"""Blocks of the last axis of the event, each in a space of its own; squared lengths and log-volumes add up.

    Arguments:
        spaces: one for each block, from left to right.
        sizes: how many coordinates each block has.

    >>> from sciflow.transport.spaces import Euclidean, Sphere
    >>> space = ProductSpace([Euclidean(), Sphere()], [2, 3])
    >>> space.project(torch.tensor([[5.0, 6.0, 0.0, 0.0, 7.0]]))
    tensor([[5., 6., 0., 0., 1.]])
    """

    def __init__(self, spaces: Sequence[Space], sizes: Sequence[int]) -> None:
        if len(spaces) != len(sizes) or not spaces or min(sizes) < 1:
            raise UserError(f"{len(spaces)} spaces and sizes={list(sizes)}: give one positive size for each space")
        self.spaces, self.sizes = list(spaces), [int(size) for size in sizes]
        self.euclidean = all(space.euclidean for space in spaces)
        self.straight = all(space.straight for space in spaces)
        self.walls = any(space.walls for space in spaces)
        self.mirrors = any(space.mirrors for space in spaces)
        self.keeps_zero = all(space.keeps_zero for space in spaces)
        self.whole = any(space.whole for space in spaces)
        self._widths = [space.width(size) for space, size in zip(self.spaces, self.sizes, strict=True)]

    def _blocks(self, *tensors: Tensor) -> list[tuple[Space, tuple[Tensor, ...]]]:
        for x in tensors:
            self._check(x.shape[-1])
        parts = zip(*(x.split(self.sizes, -1) for x in tensors), strict=True)
        return list(zip(self.spaces, parts, strict=True))

    def _joined(self, method: Callable[..., Tensor], *tensors: Tensor) -> Tensor:
        return torch.cat([method(space, *parts) for space, parts in self._blocks(*tensors)], -1)

    def _check(self, size: int) -> None:
        if size != sum(self.sizes):
            raise ValueError(f"the last axis has {size} coordinates, the blocks {self.sizes} have {sum(self.sizes)}")

    def masked(self, mask: Tensor | None) -> Space:
        parts = [None] * len(self.sizes) if mask is None else mask.split(self.sizes, -1)
        spaces = [space.masked(part) for space, part in zip(self.spaces, parts, strict=True)]
        same = all(a is b for a, b in zip(spaces, self.spaces, strict=True))
        return self if same else ProductSpace(spaces, self.sizes)

    def project(self, x: Tensor) -> Tensor:
        return self._joined(lambda space, x: space.project(x), x)

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        found = [space.fold(part) for space, (part,) in self._blocks(x)]
        point = torch.cat([part for part, _ in found], -1)
        if all(sign is None for _, sign in found):
            return point, None
        return point, torch.cat([torch.ones_like(part) if sign is None else sign for part, sign in found], -1)

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        return self._joined(lambda space, x, v: space.tangent(x, v), x, v)

    def step(self, x: Tensor, increment: Tensor) -> Tensor:
        return self._joined(lambda space, x, v: space.step(x, v), x, increment)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        return self._joined(lambda space, x, v: space.exp(x, v), x, v)

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        return self._joined(lambda space, x, y: space.log(x, y), x, y)

    def shoot(self, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        found = [space.shoot(point, velocity, t) for space, (point, velocity) in self._blocks(x, v)]
        return torch.cat([point for point, _ in found], -1), torch.cat([velocity for _, velocity in found], -1)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.stack([space.squared_norm(*parts) for space, parts in self._blocks(x, v)]).sum(0)

    def correction(self, x: Tensor, v: Tensor) -> Tensor:
        return torch.stack([space.correction(*parts) for space, parts in self._blocks(x, v)]).sum(0)

    def inside(self, x: Tensor) -> Tensor:
        return torch.stack([space.inside(part) for space, (part,) in self._blocks(x)]).all(0)

    def contains(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        masks: Sequence[Tensor | None] = [None] * len(self.sizes) if mask is None else mask.split(self.sizes, -1)
        blocks = zip(self._blocks(x), masks, strict=True)
        return torch.stack([space.contains(part, present) for (space, (part,)), present in blocks]).all(0)

    def cut(self, mask: Tensor) -> Tensor:
        return torch.stack([space.cut(part) for space, (part,) in self._blocks(mask)]).any(0)

    def width(self, size: int) -> int:
        self._check(size)
        return sum(self._widths)

    def embed(self, x: Tensor) -> Tensor:
        return self._joined(lambda space, x: space.embed(x), x)

    def embed_mask(self, mask: Tensor) -> Tensor:
        return self._joined(lambda space, mask: space.embed_mask(mask), mask)

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        parts = zip(self._blocks(x), u.split(self._widths, -1), strict=True)
        return torch.cat([space.pullback(part, out) for (space, (part,)), out in parts], -1)

    def uniforms(self, size: int) -> int:
        self._check(size)
        return sum(space.uniforms(size) for space, size in zip(self.spaces, self.sizes, strict=True))

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        counts = [space.uniforms(size) for space, size in zip(self.spaces, self.sizes, strict=True)]
        parts = zip(self.spaces, uniform.split(counts, -1), self.sizes, strict=True)
        return torch.cat([space.from_uniform(part, size) for space, part, size in parts], -1)

    def present_log_volume(self, mask: Tensor) -> Tensor:
        return torch.stack([space.present_log_volume(part) for space, (part,) in self._blocks(mask)]).sum(0)

    def log_volume(self, size: int) -> float:
        self._check(size)
        return sum(space.log_volume(size) for space, size in zip(self.spaces, self.sizes, strict=True))
