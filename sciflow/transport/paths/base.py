"""The contract of a path: how a pair of endpoints is bridged, and what its quantities say of each other."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NoReturn

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.part import Part
from sciflow.transport.spaces.base import Space

__all__ = ["AffinePath", "Path", "root_epsilon"]


class Path(Part, ABC):
    """(pair, t, space) -> Bridge, with time 0 at the base and time 1 at the data.

    Attributes:
        straight: x_t is a combination of x_0 and x_1 in ambient coordinates: right in R^n and, where nothing is added to
            it, in convex sets (box, simplex); wrong on curved spaces.
        linear: x_t = t x_1 + (1 - t) x_0.
        convex: x_t lies between x_0 and x_1: it stays in convex sets.
        noisy: the path adds a normal of its own, `Bridge.noise`.
    """

    straight: bool = False
    linear: bool = False
    convex: bool = False
    noisy: bool = False

    @abstractmethod
    def __call__(self, pair: Pair, t: Tensor, space: Space) -> Bridge:
        """One draw of the conditional path at times t (B,). Gradients flow to x0 and x1."""

    def on(self, space: Space) -> Path:
        """The path on the space of a flow: itself, unless its conversions depend on the space."""
        return self

    @abstractmethod
    def endpoint_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """E[x1 | xt] from the marginal velocity."""

    @abstractmethod
    def velocity_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The marginal velocity from E[x1 | xt]; not defined at t = 1."""

    def deviation(self, t: Tensor, x: Tensor) -> Tensor:
        """Standard deviation of the normal noise in x_t, shaped for rows x: score = -E[noise | x_t] / deviation."""
        self._no("normal noise: it has no score")

    def noise_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """E[noise | xt] from the marginal velocity."""
        self._no("noise that the velocity would tell: it has no score")

    def _no(self, what: str) -> NoReturn:
        raise UserError(f"{self!r} has no {what}")


class AffinePath(Path):
    r"""x_t = a(t) x_1 + s(t) x_0, u_t = a'(t) x_1 + s'(t) x_0 with a(0) = s(1) = 0, a(1) = s(0) = 1 in R^n.

    Both are linear in (x_0, x_1), so with w = a s' - s a' (negative on the way)

        E[x_1 | x_t] = (s' x_t - s v) / w,      E[x_0 | x_t] = (a v - a' x_t) / w,

    and for a standard normal base score = -E[x_0 | x_t] / s. Times are (B,) or (); they multiply rows, never features.
    Divisors that vanish at an end (s at t = 1, a at t = 0) are kept above the square root of the dtype's epsilon: results
    are finite there, and exact wherever the quotient is 0 / 0.

    Two affine paths differ by a change of time and a scale alone: `angle` is what they share.
    """

    straight = True
    lingers: bool = False  # a' = 0 at t = 0: the velocity there tells nothing of the endpoint

    @abstractmethod
    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """a, s, a', s' at times t, same shape as t."""

    def __call__(self, pair: Pair, t: Tensor, space: Space) -> Bridge:
        a, s, da, ds = self.at(t, pair.x1)
        return Bridge(pair, t, a * pair.x1 + s * pair.x0, da * pair.x1 + ds * pair.x0)

    def endpoint_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        a, s, da, ds = self.at(t, xt)
        return (ds * xt - s * v) / _wronskian(a, s, da, ds)

    def velocity_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        a, s, da, ds = self.at(t, xt)
        return da * x1 + ds * (xt - a * x1) / _positive(s)

    def noise_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """E[x0 | xt] from the marginal velocity."""
        a, s, da, ds = self.at(t, xt)
        return (a * v - da * xt) / _wronskian(a, s, da, ds)

    def velocity_from_noise(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The marginal velocity from E[x0 | xt]; not defined at t = 0."""
        a, s, da, ds = self.at(t, xt)
        return da * (xt - s * x0) / _positive(a) + ds * x0

    def noise_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """E[x0 | xt] from E[x1 | xt]; not defined at t = 1."""
        a, s, _, _ = self.at(t, xt)
        return (xt - a * x1) / _positive(s)

    def endpoint_from_noise(self, x0: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """E[x1 | xt] from E[x0 | xt]; not defined at t = 0."""
        a, s, _, _ = self.at(t, xt)
        return (xt - s * x0) / _positive(a)

    def score_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The gradient of log p_t for a standard normal base; not defined at t = 1."""
        return -self.noise_from_velocity(v, xt, t) / _positive(self.deviation(t, xt))

    def velocity_from_score(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The marginal velocity from the score for a standard normal base; not defined at t = 0."""
        return self.velocity_from_noise(-self.deviation(t, xt) * score, xt, t)

    def score_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """(a E[x1 | xt] - xt) / s^2 for a standard normal base; not defined at t = 1."""
        return -self.noise_from_endpoint(x1, xt, t) / _positive(self.deviation(t, xt))

    def endpoint_from_score(self, score: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """Tweedie's formula (xt + s^2 score) / a for a standard normal base; not defined at t = 0."""
        return self.endpoint_from_noise(-self.deviation(t, xt) * score, xt, t)

    def deviation(self, t: Tensor, x: Tensor) -> Tensor:
        """s(t): that of x_0 in x_t, for a standard normal base."""
        return self.at(t, x)[1]

    def angle(self, t: Tensor) -> Tensor:
        """arctan(a / s), from 0 at the base to pi / 2 at the data: the signal-to-noise ratio, finite at both ends."""
        a, s, _, _ = self.coefficients(t)
        return torch.atan2(a, s)

    def norm(self, t: Tensor) -> Tensor:
        """sqrt(a^2 + s^2), same shape as t."""
        a, s, _, _ = self.coefficients(t)
        return torch.hypot(a, s)

    @torch.no_grad()
    def time(self, angle: Tensor) -> Tensor:
        """The time with this `angle`, by bisection; override where a formula exists. Angles must increase with time."""
        low, high = torch.zeros_like(angle), torch.ones_like(angle)
        for _ in range(2 - int(math.log2(torch.finfo(angle.dtype).eps))):
            middle = 0.5 * (low + high)
            below = self.angle(middle) < angle
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return 0.5 * (low + high)

    def at(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The coefficients at times () or (B,), shaped (B, 1, ..., 1) for rows x and in their dtype."""
        a, s, da, ds = self.coefficients(expand_time(t, x).to(x.dtype))
        return a, s, da, ds


def root_epsilon(x: Tensor) -> float:
    """The square root of the dtype's epsilon: where a quotient of rounded differences loses half its digits."""
    return math.sqrt(torch.finfo(x.dtype).eps)


def _positive(divisor: Tensor) -> Tensor:
    return divisor.clamp_min(root_epsilon(divisor))


def _wronskian(a: Tensor, s: Tensor, da: Tensor, ds: Tensor) -> Tensor:
    # schedules with a' = s' = 0 at an end say nothing there: finite instead of 0 / 0
    return (a * ds - s * da).clamp_max(-root_epsilon(a))
