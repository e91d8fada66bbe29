"""Guidance towards points of high or low density."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.arguments import real
from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.schedule import Interval, Schedule, strength_at, strength_of
from sciflow.transport.guidance.tilt import affine_path, tangent

__all__ = ["DensityGuidance", "PriorGuidance"]


class PriorGuidance(Guidance):
    r"""The noise scaled by 1 + strength before it is transported: towards smooth, typical draws for negative strengths.

    Written as a field, so that the density of the draws comes with them. With c = 1 + strength and r = c^(1 - t), the points
    y = x_t / r of a scaled start follow

        dy/dt = v(t, r y) / r + log(c) y,

    begin at unscaled noise, and end where the scaled noise ends. A learned shift of the noise is not scaled. In between they
    are elsewhere than the path's points: classifier-free guidance, energies and densities come before it, constraints after.

    Raises `UserError` for strengths of -1 or less, paths that are not affine and noise that is not normal.

    Source: Devil is in the Details: Density Guidance for Detail-Aware Generation with Flow Models, Karczewski et al. 2025,
    arXiv 2502.05807.
    """

    def __init__(self, strength: float = 0.0) -> None:
        super().__init__()
        if strength <= -1:
            raise UserError(f"strength={strength}: the noise is scaled by 1 + strength, which must be positive")
        self.strength = real("strength", strength)

    def forward(self, field: Field) -> Field:
        if self.strength == 0:
            return field
        affine_path(self, field)
        field.need_score()
        growth = math.log1p(self.strength)

        def guided(t: Tensor, y: Tensor) -> Tensor:
            r = torch.exp((1 - expand_time(t, y).to(y.dtype)) * growth)
            z = y if field.shifts[0] is None else y - field.shifts[0]
            return field(t, y + (r - 1) * z) / r + tangent(field, y, growth * z)

        found = FunctionField(guided, field, self.forward)
        found.no_score = "prior guidance changes the noise, which is standard normal no more"
        found.moved = f"{self!r} scales the points"
        return found


class DensityGuidance(Guidance):
    r"""The smallest change of the velocity for which the log-density along a trajectory rises at a chosen rate:

        v' = v + b score / |score|^2,      d log p_t(x_t) / dt = -div v + b,      b = strength sqrt(D / 2) d r / dt,

    where r(t) rises from 0 at `low` to 1 at `high` like log(a / s), which is infinite at both ends. So, exactly,

        log p_high(x_high) = log p_low(x_low) - int div v dt + strength sqrt(D / 2),

    whatever the trajectory. Strength is in standard deviations of the log-density of a normal of D dimensions, sqrt(D / 2):
    for a normal 1 leads to draws as typical as the upper 16 %, -1 to the lower. Negative strengths give detail, positive ones
    smooth draws. p_t is the model's; the log-density of the guided flow is another one, that of the guided draws.

    Where |s score|^2 < D / 1000, at the very modes, the change is limited and the law does not hold.

    Arguments:
        strength: a number or a `Schedule`.
        low, high: the times between which it acts.

    Raises `UserError` for paths that are not affine and noise that is not normal.

    Source: Devil is in the Details: Density Guidance for Detail-Aware Generation with Flow Models, Karczewski et al. 2025,
    arXiv 2502.05807.
    """

    def __init__(self, strength: float | Schedule = 0.0, *, low: float = 0.05, high: float = 0.95) -> None:
        super().__init__()
        if not 0 < low < high < 1:
            raise UserError(f"low={low}, high={high}: the score is unknown at the ends, give times between 0 and 1")
        self.strength, self.low, self.high = strength_of(strength), low, high
        self._window = Interval(low, high)

    def forward(self, field: Field) -> Field:
        if self.strength == 0:
            return field
        path = affine_path(self, field)
        field.need_score()
        found = FunctionField(lambda t, x: guided(t, x), field, self.forward)
        found.no_score = "density guidance leaves the marginals of the path"

        def guided(t: Tensor, x: Tensor) -> Tensor:
            v, noise = field.velocity_and_noise(t, x)
            # inside the window only: its edges bound a and s, so nothing has to be clamped for the outside
            inside = t.clamp(self.low, self.high)
            a, s, da, ds = path.at(inside, x)
            begin, end = (path.at(torch.full_like(inside, edge), x) for edge in (self.low, self.high))
            whole = (end[0] * begin[1] / (end[1] * begin[0])).log()  # how far log(a / s) rises
            count = x.new_full((), noise[0].numel()) if field.mask is None else field.mask.flatten(1).sum(1).to(x.dtype)
            size = expand_time(count, x).clamp_min(1)  # an event without features is not 0 / 0
            square = expand_time(noise.flatten(1).square().sum(1), x)  # |s score|^2
            rate = strength_at(self.strength, t, x) * torch.sqrt(size / 2) * (da / a - ds / s) / whole
            change = -rate * s * noise / torch.maximum(square, 1e-3 * size)
            return v + torch.where(strength_at(self._window, t, x) > 0, tangent(field, x, change), 0)

        return found
