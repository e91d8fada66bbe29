"""Class-conditional two moons, and the distance of draws from them."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers.base import Stepper

__all__ = ["distance", "moons"]


def moons(rows: int, seed: int, noise: float = 0.1) -> tuple[Tensor, Tensor]:
    """Standardised points (rows, 2) and their class (rows, 1), 0 and 1 in turn."""
    generator = torch.Generator().manual_seed(seed)
    label = (torch.arange(rows) % 2).float().unsqueeze(1)
    angle = math.pi * torch.rand(rows, 1, generator=generator)
    upper = torch.cat([angle.cos(), angle.sin()], 1)
    lower = torch.cat([1 - angle.cos(), 0.5 - angle.sin()], 1)
    x = torch.where(label > 0, lower, upper) + noise * torch.randn(rows, 2, generator=generator)
    return (x - torch.tensor([0.5, 0.25])) / torch.tensor([0.87, 0.5]), label


@torch.no_grad()
def distance(flow: TransportFlow, stepper: Stepper, *, seed: int, draws: int = 20000) -> float:
    """Sliced W2 per class, over 64 directions, debiased: the root of the mean over classes of SW2^2(draws, data) less
    SW2^2(other data, data), each of `draws` points; negative if that is negative."""
    torch.manual_seed(seed)
    turn = torch.arange(64) * math.pi / 64
    directions = torch.stack([turn.cos(), turn.sin()])
    data, other = moons(2 * draws, seed + 1000)[0], moons(2 * draws, seed + 2000)[0]

    def square(a: Tensor, b: Tensor) -> float:
        return float(((a @ directions).sort(0).values - (b @ directions).sort(0).values).square().mean())

    total = 0.0
    for label in (0, 1):
        found = flow.sampling(stepper=stepper)(torch.tensor([float(label)])).sample((draws,))
        total += 0.5 * (square(found, data[label::2]) - square(other[label::2], data[label::2]))
    return math.copysign(abs(total) ** 0.5, total)
