"""Strengths that depend on time."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.arguments import real
from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.part import Part

__all__ = ["CosineRamp", "Interval", "PiecewiseLinear", "Schedule", "strength_at", "strength_of"]


class Schedule(Part, ABC):
    """t -> strength, elementwise; tensor operations only, so that nothing waits for the device."""

    @abstractmethod
    def __call__(self, t: Tensor) -> Tensor:
        """The strength at times t, same shape and dtype."""


class Interval(Schedule):
    """`inside` for low <= t <= high, `outside` elsewhere.

    For classifier-free guidance the outside is 1, the conditional field: early on guidance costs diversity, and late it does
    nothing. As the schedule of `Scheduled` the defaults limit any guidance to the interval.

    Source: Applying Guidance in a Limited Interval Improves Sample and Distribution Quality in Diffusion Models, Kynkäänniemi
    et al. 2024, arXiv 2404.07724.

    >>> Interval(0.25, 0.75, inside=3.0, outside=1.0)(torch.tensor([0.0, 0.5, 1.0]))
    tensor([1., 3., 1.])
    """

    def __init__(self, low: float, high: float, *, inside: float = 1.0, outside: float = 0.0) -> None:
        if not 0 <= low < high <= 1:
            raise UserError(f"the interval [{low}, {high}] is no part of [0, 1]")
        self.low, self.high, self.inside, self.outside = low, high, float(inside), float(outside)

    def __call__(self, t: Tensor) -> Tensor:
        return self.outside + (self.inside - self.outside) * ((t >= self.low) & (t <= self.high)).to(t.dtype)


class CosineRamp(Schedule):
    """From `start` at t = 0 to `end` at t = 1 along half a cosine, flat at both ends."""

    def __init__(self, start: float = 0.0, end: float = 1.0) -> None:
        self.start, self.end = start, end

    def __call__(self, t: Tensor) -> Tensor:
        return self.start + (self.end - self.start) * 0.5 * (1 - torch.cos(math.pi * t))


class PiecewiseLinear(Schedule):
    """Linear between the values at given increasing times, constant beyond them.

    >>> PiecewiseLinear([0.0, 0.5, 1.0], [0.0, 2.0, 0.0])(torch.tensor([0.25, 0.5, 0.75]))
    tensor([1., 2., 1.])
    """

    def __init__(self, times: Sequence[float], values: Sequence[float]) -> None:
        if len(times) != len(values) or len(times) < 2 or any(b <= a for a, b in itertools.pairwise(times)):
            raise UserError(f"{len(times)} times and {len(values)} values: give as many of both, two or more, times increasing")
        self.times, self.values = [float(t) for t in times], [float(value) for value in values]

    def __call__(self, t: Tensor) -> Tensor:
        # a sum of ramps: no table that would have to be moved to the device
        found = torch.full_like(t, self.values[0])
        steps = zip(self.times[:-1], self.times[1:], self.values[:-1], self.values[1:], strict=True)
        for first, last, low, high in steps:
            found = found + (high - low) * ((t - first) / (last - first)).clamp(0, 1)
        return found


def strength_of(strength: float | Schedule) -> float | Schedule:
    """A strength as it was given. Raises `UserError` if it is neither a finite number nor a `Schedule`."""
    return strength if isinstance(strength, Schedule) else real("strength", strength)


def strength_at(strength: float | Schedule, t: Tensor, x: Tensor) -> Tensor:
    """A constant or scheduled strength, shaped for rows x (B, *event)."""
    t = expand_time(t, x).to(x.dtype)
    return strength(t) if isinstance(strength, Schedule) else torch.full_like(t, strength)
