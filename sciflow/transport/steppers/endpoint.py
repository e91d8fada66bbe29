"""Exact steps to a moving endpoint."""

from __future__ import annotations

import numbers
from collections.abc import Iterable, Sequence
from itertools import pairwise

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.divergence import Divergence
from sciflow.transport.field import Field
from sciflow.transport.paths.base import AffinePath
from sciflow.transport.steppers.base import Solution, Stepper

__all__ = ["EndpointStep"]


class EndpointStep(Stepper):
    r"""The exact solution between two times while mu = E[x_1 | x_t] is held fixed, from t to u on an affine path:

        x_u = s(u) / s(t) x_t + (a(u) - a(t) s(u) / s(t)) mu,      linear path: x_u = x_t + (u - t) / (1 - t) (mu - x_t).

    The singular part of the velocity at t = 1 is integrated in closed form and the last step ends exactly at mu; for
    variance-preserving paths it is the deterministic step of diffusion models. First order in the number of steps. There is
    no density: the last step forgets x_t, so no step of it can be undone.

    Arguments:
        steps: number of steps; or the increasing times (0, ..., 1) to stop at.

    Source: Denoising Diffusion Implicit Models, Song, Meng and Ermon 2020, arXiv 2010.02502; DPM-Solver++, Lu et al. 2022,
    arXiv 2211.01095 (the step of order one for data prediction).
    """

    density = False
    reversible = False
    needs_affine = True
    needs_endpoint = True
    euclidean_only = True

    def __init__(self, steps: int | Sequence[float] = 50) -> None:
        self.times = times_of(steps)

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        check_forward(self, start, end, divergence)
        path = field.path
        if not isinstance(path, AffinePath):
            raise UserError(f"{self!r} needs an affine path such as Linear, the field follows {path!r}")
        if start == 0 and path.lingers and not field.tells_endpoint:
            raise UserError(
                f"{path!r} stands still at t = 0, where the velocity tells nothing of the endpoint that {self!r} aims at: use "
                "FixedStep, another path, or an Endpoint head without guidance that changes velocities"
            )
        times = [x.new_full((), start + (end - start) * t) for t in self.times]
        for t, u in pairwise(times):
            (a, s, _, _), (a_next, s_next, _, _) = path.at(t, x), path.at(u, x)
            ratio = s_next / s
            x = ratio * x + (a_next - a * ratio) * field.endpoint(t, x)
        return Solution(x, None, len(times) - 1)


def times_of(steps: int | Sequence[float]) -> list[float]:
    """The times to stop at. Raises `UserError` unless `steps` is a positive number, or times that increase from 0 to 1."""
    if isinstance(steps, numbers.Integral) and not isinstance(steps, bool):
        count = int(steps)
        times = [k / count for k in range(count + 1)] if count > 0 else []
    else:
        times = [float(t) for t in steps] if isinstance(steps, Iterable) else []
    rising = all(a < b for a, b in pairwise(times))
    if len(times) < 2 or times[0] != 0 or times[-1] != 1 or not rising:
        raise UserError(f"steps={steps!r}: give a positive number of steps, or times that increase from 0 to 1")
    return times


def check_forward(stepper: Stepper, start: float, end: float, divergence: Divergence | None) -> None:
    """Raises `UserError` for what a stepper without density and without a way back cannot do."""
    if divergence is not None:
        raise UserError(f"{stepper!r} solves no equation for the log-density: use FixedStep or Adaptive where it is needed")
    if end <= start:
        raise UserError(f"{stepper!r} goes forward in time only, not from {start} to {end}: use FixedStep to go back")
