"""Velocity fields with their condition bound: what steppers follow and guidance wraps."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.paths.base import Path, root_epsilon
from sciflow.transport.spaces.base import Space

__all__ = ["Field", "FunctionField", "MixedField"]


class Field(ABC):
    """(t, x) -> v for rows x (B, *event) and times t, () or (B,). Absent features (mask False) have velocity 0.

    Attributes: `path`, `space`, `mask` (B, *event) or None. A field is made for B rows: its condition has as many.
    `no_score` is the reason if there is no score, `moved` what has put the points elsewhere than on the path. `shifts`
    (B, *event) is where learned shifts put noise and data, None for one that stays.
    """

    path: Path
    space: Space
    mask: Tensor | None
    no_score: str | None = None
    moved: str | None = None
    shifts: tuple[Tensor | None, Tensor | None] = (None, None)
    tells_endpoint: bool = False  # `endpoint` is known even where the velocity tells nothing of it

    @abstractmethod
    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        """The velocity at x and t, tangent to the space."""

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        """E[x1 | x_t = x]."""
        return self.path.endpoint_from_velocity(self(t, x), x, t)

    def velocity_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """The velocity and E[noise | x_t = x] from one evaluation: finite at both ends, unlike the score.

        On an affine path the noise is x_0 without its learned shift, and it tells the score if it is a standard normal.
        """
        v = self(t, x)
        return v, self._centred(self.path.noise_from_velocity(v, x, t))

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """grad log p_t(x) = -E[noise | x] / deviation: on affine paths for a standard normal base; not defined at t = 1."""
        self.need_score()
        deviation = self.path.deviation(t, x)
        return -self.velocity_and_noise(t, x)[1] / deviation.clamp_min(root_epsilon(deviation))

    def need_score(self) -> None:
        """Raises `UserError` with the reason if the noise does not tell the score."""
        if self.no_score is not None:
            raise UserError(f"no score: {self.no_score}")

    def average(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        """The average velocity from time t at x to time s, of a two-time network. Raises `UserError` where there is none."""
        raise UserError(f"{type(self).__name__} has no average velocity: it comes from a one-time network")

    def rows(self, index: Tensor) -> Field | None:
        """The same field for some of its rows, so that a stepper can leave finished ones out; None if it has no such form."""
        return None

    def unconditional(self) -> Field:
        """The same field without the condition. Raises `UserError` if the flow has none."""
        raise UserError(f"{type(self).__name__} knows no unconditional field")

    def _centred(self, noise: Tensor) -> Tensor:
        return noise if self.shifts[0] is None or self.path.noisy else noise - self.shifts[0]


class FunctionField(Field):
    """A field from a function (t (B,), x) -> v, on the path and space of another one: what guidance returns.

    `again` makes the same of another field, such as of some rows of `like`. Without it rows cannot be left out.
    """

    def __init__(
        self, function: Callable[[Tensor, Tensor], Tensor], like: Field, again: Callable[[Field], Field] | None = None
    ) -> None:
        self.function, self.like, self.again = function, like, again
        self.path, self.space, self.mask = like.path, like.space, like.mask
        self.no_score, self.moved, self.shifts = like.no_score, like.moved, like.shifts

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        return self.function(t.expand(x.shape[0]), x)

    def rows(self, index: Tensor) -> Field | None:
        like = None if self.again is None else self.like.rows(index)
        return None if like is None or self.again is None else self.again(like)

    def unconditional(self) -> Field:
        return self.like.unconditional()


class MixedField(FunctionField):
    """v + r (v' - v) of two fields on the same path, velocity and noise alike; r (B, 1, ...) is a function of (t, x).

    It takes the place of the field `like`; the rate does not know rows by their number. r = 0 and 1 are the one and the other
    to the last bit, and where r = 0 nothing of the other counts, not even what is not finite.
    """

    def __init__(self, one: Field, other: Field, rate: Callable[[Tensor, Tensor], Tensor], like: Field) -> None:
        super().__init__(lambda t, x: self._mixed(one(t, x), other(t, x), rate(t, x)), like)
        self.one, self.other, self.rate = one, other, rate
        self.tells_endpoint = one.tells_endpoint and other.tells_endpoint

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        if not self.tells_endpoint:
            return super().endpoint(t, x)
        t = t.expand(x.shape[0])
        return self._mixed(self.one.endpoint(t, x), self.other.endpoint(t, x), self.rate(t, x))

    def velocity_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t = t.expand(x.shape[0])
        (v, noise), (w, n) = self.one.velocity_and_noise(t, x), self.other.velocity_and_noise(t, x)
        rate = self.rate(t, x)
        return self._mixed(v, w, rate), self._mixed(noise, n, rate)

    def rows(self, index: Tensor) -> Field | None:
        one, other, like = (field.rows(index) for field in (self.one, self.other, self.like))
        return None if one is None or other is None or like is None else MixedField(one, other, self.rate, like)

    @staticmethod
    def _mixed(one: Tensor, other: Tensor, rate: Tensor) -> Tensor:
        return torch.lerp(one, torch.where(rate == 0, one, other), rate.expand_as(one))
