"""The contract of a time prior: where along the path an objective looks."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.part import Part

__all__ = ["TimeDensity", "TimePrior", "Uniform"]


class TimePrior(Part, ABC):
    """Draws times t (B,) in (0, 1) and weights (B,) of their losses, None for equal ones."""

    @abstractmethod
    def __call__(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        """Times and weights with device and dtype of `like`, from torch's generator."""


class TimeDensity(TimePrior):
    r"""A prior with a known density p(t) on [low, high] in [0, 1]. Its draws have equal weights, so that it changes what is
    minimised, \int p(t) loss(t) dt; `Importance` draws from it and keeps the target."""

    low: float = 0.0
    high: float = 1.0

    @abstractmethod
    def from_uniform(self, uniform: Tensor) -> Tensor:
        """The inverse cumulative distribution at uniforms (B,)."""

    @abstractmethod
    def density(self, t: Tensor) -> Tensor:
        """p(t), same shape as t, for t in [low, high]."""

    def __call__(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.from_uniform(torch.rand(rows, device=like.device, dtype=like.dtype)), None


class Uniform(TimeDensity):
    """Uniform times; `low` and `high` for a part of the path. Raises `UserError` if that is no part of [0, 1]."""

    def __init__(self, low: float = 0.0, high: float = 1.0) -> None:
        if not 0 <= low < high <= 1:
            raise UserError(f"low={low}, high={high}: give a part of [0, 1]")
        self.low, self.high = low, high

    def from_uniform(self, uniform: Tensor) -> Tensor:
        return self.low + (self.high - self.low) * uniform

    def density(self, t: Tensor) -> Tensor:
        return torch.full_like(t, 1 / (self.high - self.low))
