"""Affine paths from schedules: variance preserving, polynomial, and whatever a subclass writes down."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.paths.base import AffinePath, root_epsilon

__all__ = ["Cosine", "LinearBeta", "Polynomial", "ScheduledPath", "VariancePreserving"]


class ScheduledPath(AffinePath):
    r"""An affine path from its schedule alone: subclasses write a(t) and s(t), forward differentiation finds a' and s'.

    Both must be elementwise torch functions of t, differentiable on [0, 1], with a(0) = s(1) = 0, a(1) = s(0) = 1 and a / s
    increasing. Constructor arguments are recorded, so a path of one's own is saved with the flow:

    >>> class Arc(ScheduledPath):
    ...     def __init__(self, power: float = 1.0) -> None:
    ...         self.power = power
    ...     def a(self, t: Tensor) -> Tensor:
    ...         return t**self.power
    ...     def s(self, t: Tensor) -> Tensor:
    ...         return (1 - t) ** self.power
    >>> [round(float(c), 3) for c in Arc(2.0).coefficients(torch.tensor(0.5))]
    [0.25, 0.25, 1.0, -1.0]
    """

    @abstractmethod
    def a(self, t: Tensor) -> Tensor:
        """The part of the data in x_t."""

    @abstractmethod
    def s(self, t: Tensor) -> Tensor:
        """The part of the noise in x_t."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        t = t.contiguous()  # a single time that was expanded to rows has no memory of its own for tangents
        values, rates = torch.func.jvp(lambda t: (self.a(t), self.s(t)), (t,), (torch.ones_like(t),))[:2]
        return *values, *rates


class VariancePreserving(AffinePath):
    r"""a = sin(pi t / 2), s = cos(pi t / 2): x_t keeps unit variance where the data have it.

    The cosine schedule of diffusion models, and the trigonometric interpolant. Source: Improved Denoising Diffusion
    Probabilistic Models, Nichol and Dhariwal 2021, arXiv 2102.09672; Building Normalizing Flows with Stochastic
    Interpolants, Albergo and Vanden-Eijnden 2022, arXiv 2209.15571.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        half = 0.5 * math.pi
        # each from the nearer zero of its sine: exactly 0 at its end
        a, s = torch.sin(half * t), torch.sin(half * (1 - t))
        return a, s, half * s, -half * a

    def time(self, angle: Tensor) -> Tensor:
        return angle / (0.5 * math.pi)


Cosine = VariancePreserving


class Polynomial(AffinePath):
    """a = t^n, s = 1 - t^n: the straight line, run at another speed; n = 1 is `Linear`.

    Arguments:
        power: n >= 1; above 1 the path lingers at the noise, where a' = s' = 0 tells nothing of the endpoints.
    """

    convex = True

    def __init__(self, power: float = 2.0) -> None:
        if not power >= 1:
            raise UserError(f"power={power}: at least 1 is needed, below it the velocity at t = 0 is infinite")
        self.power, self.lingers = power, power > 1

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        a, da = t**self.power, self.power * t ** (self.power - 1)
        return a, 1 - a, da, -da

    def time(self, angle: Tensor) -> Tensor:
        return (torch.sin(angle) / (torch.sin(angle) + torch.cos(angle))) ** (1 / self.power)


class LinearBeta(AffinePath):
    r"""The linear beta schedule of diffusion models, with r = 1 - t their time from data to noise:

        a = exp(-r^2 (beta_max - beta_min) / 4 - r beta_min / 2),      s = sqrt(1 - a^2).

    For denoisers trained on it, see `sciflow.transport.denoiser`. At t = 0 some data are left (a = 0.0066 with the
    defaults), and s' is infinite at t = 1 (kept finite here): better reschedule to another path than follow this one.

    Source: Score-Based Generative Modeling through Stochastic Differential Equations, Song et al. 2020, arXiv 2011.13456.
    """

    def __init__(self, beta_min: float = 0.1, beta_max: float = 20.0) -> None:
        if not 0 < beta_min <= beta_max:
            raise UserError(f"beta_min={beta_min}, beta_max={beta_max}: give 0 < beta_min <= beta_max")
        self.beta_min, self.beta_max = beta_min, beta_max

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        r = 1 - t
        log_a = -0.25 * r**2 * (self.beta_max - self.beta_min) - 0.5 * r * self.beta_min
        a = torch.exp(log_a)
        square = -torch.expm1(2 * log_a)
        s = torch.sqrt(square.clamp_min(0))
        da = 0.5 * a * (self.beta_min + r * (self.beta_max - self.beta_min))
        return a, s, da, -a * da / s.clamp_min(root_epsilon(s))

    def time(self, angle: Tensor) -> Tensor:
        # a^2 + s^2 = 1, so a = sin(angle): a quadratic equation for r, its root without cancellation
        half, rest = 0.5 * self.beta_min, self.beta_max - self.beta_min
        # angles below that of t = 0, where some data are left, are none of this path
        minus_log_a = (-0.5 * torch.log1p(-(torch.cos(angle) ** 2))).clamp_max(0.25 * rest + half)
        r = 2 * minus_log_a / (half + torch.sqrt(half**2 + rest * minus_log_a))
        return (1 - r).clamp(0, 1)
