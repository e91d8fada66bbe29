"""The steps of twisted sequential Monte Carlo with their densities."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.moves import in_blocks
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.twisted_functions import Twist
from sciflow.transport.field import Field
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.paths.base import AffinePath

__all__ = ["Look", "Way"]


class Look(NamedTuple):
    """What is known at points x_t: velocity, E[noise | x], the log twist and where it leads."""

    velocity: Tensor
    noise: Tensor
    log_twist: Tensor
    lead: Tensor

    def rows(self, index: Tensor) -> Look:
        return Look(*(entry[index] for entry in self))


class Way:
    """Euler-Maruyama steps of dx = (v - c n) dt + sqrt(2 c d) dW for the field of a problem's prior, c = `scale`.

    Its marginals are those of the flow; the time-reversed SDE is dx = (v + c n) dt with the same noise. Velocities are
    evaluated at `chunk` rows at a time.
    """

    def __init__(self, problem: Problem, twist: Twist, guidance: Guidance | None, rows: int, scale: float, chunk: int) -> None:
        self.problem, self.twist, self.scale, self.guidance, self.chunk = problem, twist, scale, guidance, chunk
        self.fields: dict[int, tuple[Field, Field | None]] = {}  # a field is made for a number of rows
        self.field = self._field(rows)[0]
        self.field.need_score()
        path = self.field.path
        if not isinstance(path, AffinePath) or path.noisy or not self.field.space.euclidean:
            raise UserError(f"TwistedSMC needs an affine path in R^n, the prior has {path!r} on {self.field.space!r}")
        if self.field.mask is not None or self.field.shifts != (None, None):
            raise UserError("TwistedSMC knows no priors with masks or learned shifts of noise or data: use TemperedSMC")
        self.path = path

    def _field(self, rows: int) -> tuple[Field, Field | None]:
        """The prior's field for so many rows, and the guided one."""
        if rows not in self.fields:
            field = self.problem.prior.field(rows)
            self.fields[rows] = field, None if self.guidance is None else self.guidance(field)
        return self.fields[rows]

    def _time(self, t: float) -> Tensor:
        return torch.tensor(t, dtype=self.problem.dtype, device=self.problem.device)

    def _deviation(self, t: float) -> float:
        return float(self.path.coefficients(torch.tensor(t, dtype=torch.float64))[1])

    def base(self, x: Tensor) -> Tensor:
        """log N(x; 0, 1) (B,)."""
        return _normal(x, 1.0)

    def look(self, t: float, x: Tensor) -> Look:
        return Look(*in_blocks(lambda rows: self._look(t, rows), x, self.chunk))

    def _look(self, t: float, x: Tensor) -> Look:
        time = self._time(t)
        field, guided = self._field(len(x))
        v, noise, log_twist, lead = self.twist(self.problem, field, time, x)
        if guided is not None:
            self.problem.calls.velocity += len(x)
            a, d, da, dd = (float(entry) for entry in self.path.coefficients(torch.tensor(t, dtype=torch.float64)))
            # v' = v + d (a' d - a d') / a grad log p(y | x)
            factor = a / max(d * (da * d - a * dd), 1e-12)
            lead = ((guided(time, x) - v) * factor).detach()
        bad = ~lead.isfinite()
        return Look(v, noise, log_twist, torch.where(bad, 0.0, lead))

    def step(self, t: float, s: float, x: Tensor, here: Look, randomness: Randomness) -> tuple[Tensor, Tensor, Tensor]:
        """x_s (B, *event), log of the prior's step over the proposal (B,), and log of the prior's step (B,)."""
        h = s - t
        variance = 2 * self.scale * h * self._deviation(t)
        mean = x + h * (here.velocity - self.scale * here.noise)
        z = randomness.normal(len(x), x.shape[1:], x.dtype)
        shift = math.sqrt(variance) * here.lead
        # a lead longer than the noise many times over only kills its particle: it is cut to what noise could reach
        size = shift.reshape(len(x), -1).norm(dim=1).reshape(-1, *[1] * (x.dim() - 1))
        shift = shift * (_REACH * math.sqrt(math.prod(x.shape[1:])) / size.clamp_min(1e-300)).clamp_max(1.0)
        following = mean + math.sqrt(variance) * (z + shift)
        log_step = _normal(following - mean, variance)
        return following, log_step - _normal(z, 1.0) + 0.5 * math.prod(x.shape[1:]) * math.log(variance), log_step

    def back(self, t: float, s: float, x: Tensor, following: Tensor, there: Look) -> Tensor:
        """log density (B,) of x_t under the reversed step from x_s."""
        h = s - t
        variance = 2 * self.scale * h * self._deviation(t)
        return _normal(x - (following - h * (there.velocity + self.scale * there.noise)), variance)


_REACH = 3.0


def _normal(x: Tensor, variance: float) -> Tensor:
    size = math.prod(x.shape[1:])
    return -0.5 * (x.double().square().reshape(len(x), -1).sum(1) / variance + size * math.log(2 * math.pi * variance))
