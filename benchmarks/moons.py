"""Conditional two moons in 2 and in 32 dimensions, how far draws are from them, and the exact flow to them in the plane."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["DRAWS", "SETS", "Data", "by_class", "directions_of", "error", "exact_map", "exact_velocity", "moons", "sliced"]

DRAWS = 10_000
NOISE, CENTRE, SCALE = 0.1, (0.5, 0.25), (1.15, 2.0)


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
    x = (x + NOISE * torch.randn(rows, 2, generator=generator) - torch.tensor(CENTRE)) * torch.tensor(SCALE)
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


def exact_velocity(x: Tensor, t: float, label: float, nodes: int = 96) -> Tensor:
    """E[x_1 - x_0 | x_t = x] (B, 2) on the linear path from a standard normal to one moon, float64.

    Given the angle, x_t is normal with mean t m and variance c = t^2 (NOISE SCALE)^2 + (1 - t)^2 per feature, so that the
    velocity is m + c'/(2 c) (x - t m); the angle is integrated out by the midpoint rule.
    """
    angle = (torch.arange(nodes, dtype=torch.float64) + 0.5) * math.pi / nodes
    scale = torch.tensor(SCALE, dtype=torch.float64)
    point = torch.stack([torch.cos(angle), torch.sin(angle)], 1)
    point = torch.tensor([1.0, 0.5], dtype=torch.float64) - point if label == 1 else point
    mean = (point - torch.tensor(CENTRE, dtype=torch.float64)) * scale
    variance = (NOISE * scale) ** 2
    spread = t**2 * variance + (1 - t) ** 2
    off = x[:, None] - t * mean
    share = torch.softmax(-0.5 * (off.square() / spread).sum(2), 1)
    return share @ mean + (t * variance - (1 - t)) / spread * (share[:, :, None] * off).sum(1)


def exact_map(z: Tensor, label: float, steps: int = 40) -> Tensor:
    """Where the exact flow takes noise z (B, 2): draws of the moon, by classical Runge-Kutta steps, float64."""
    found = []
    for x in z.double().split(4096):  # the nodes of one chunk fit the cache
        for k in range(steps):
            t, h = k / steps, 1 / steps
            a = exact_velocity(x, t, label)
            b = exact_velocity(x + h / 2 * a, t + h / 2, label)
            c = exact_velocity(x + h / 2 * b, t + h / 2, label)
            x = x + h / 6 * (a + 2 * b + 2 * c + exact_velocity(x + h * c, t + h, label))
        found.append(x)
    return torch.cat(found)
