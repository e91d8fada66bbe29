"""Conditional two moons in 2 and in 32 dimensions, and how far draws are from them."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DRAWS", "SETS", "Data", "by_class", "directions_of", "error", "moons", "sliced"]

DRAWS = 10_000


class Data(NamedTuple):
    """A conditional data set: `draw(seed, rows)` gives points and their class (rows, 1) of -1 and 1."""

    name: str
    features: int
    draw: Callable[[int, int], tuple[Tensor, Tensor]]


def moons(seed: int, rows: int, features: int = 2) -> tuple[Tensor, Tensor]:
    """Two moons with noise 0.1, standardised; beyond 2 features rotated together with normal ones of width 0.3."""
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, 2, (rows,), generator=generator)
    angle = math.pi * torch.rand(rows, generator=generator)
    x = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    x = torch.where(label[:, None] == 1, torch.tensor([1.0, 0.5]) - x, x)
    x = (x + 0.1 * torch.randn(rows, 2, generator=generator) - torch.tensor([0.5, 0.25])) * torch.tensor([1.15, 2.0])
    if features > 2:
        x = torch.cat([x, 0.3 * torch.randn(rows, features - 2, generator=generator)], 1)
        rotation = torch.linalg.qr(torch.randn(features, features, generator=torch.Generator().manual_seed(99)))[0]
        x = x @ rotation
    return x, 2.0 * label[:, None] - 1


SETS = [Data("Two moons, 2 dimensions", 2, moons), Data("Two moons in 32 dimensions", 32, partial(moons, features=32))]


def directions_of(features: int) -> Tensor:
    """The fixed directions of the distance: 64 equal angles in the plane, else 256 random ones."""
    if features == 2:
        angles = torch.arange(64) * math.pi / 64
        return torch.stack([torch.cos(angles), torch.sin(angles)], 1).double()
    directions = torch.randn(256, features, generator=torch.Generator().manual_seed(5))
    return (directions / directions.norm(dim=1, keepdim=True)).double()


def sliced(x: Tensor, y: Tensor, directions: Tensor) -> float:
    """Squared sliced 2-Wasserstein distance of two samples of one size."""
    a, b = (torch.sort(z.double() @ directions.T, dim=0).values for z in (x, y))
    return float((a - b).square().mean())


def error(draws: list[Tensor], fresh: list[Tensor], other: list[Tensor], directions: Tensor) -> float:
    """Debiased distance over the classes."""
    found = statistics.fmean(sliced(a, b, directions) for a, b in zip(draws, fresh, strict=True))
    floor = statistics.fmean(sliced(a, b, directions) for a, b in zip(other, fresh, strict=True))
    return math.sqrt(max(found - floor, 0.0))


def by_class(x: Tensor, c: Tensor, conditional: bool) -> list[Tensor]:
    return [x[c[:, 0] == k][:DRAWS] for k in (-1.0, 1.0)] if conditional else [x[: 2 * DRAWS]]
