"""Jumps along a learned flow map."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.divergence import Divergence
from sciflow.transport.field import Field
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.endpoint import times_of

__all__ = ["MapStep"]


class MapStep(Stepper):
    r"""x_s = x_t + (s - t) u(x_t, t, s): one evaluation of the average velocity per jump, exact for a perfect two-time network.

    Arguments:
        steps: number of equal jumps; or the increasing times (0, ..., 1) to stop at.

    There is no log-density (the map's Jacobian determinant is not learned) and no way back (networks are trained from t
    to s >= t only): both raise `UserError`. So do guided fields, whose average velocity nobody knows.

    Source: Mean Flows for One-step Generative Modeling, Geng et al. 2025, arXiv 2505.13447.
    """

    density = False
    reversible = False
    two_time = True
    euclidean_only = True

    def __init__(self, steps: int | Sequence[float] = 1) -> None:
        self.times = times_of(steps)

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        if divergence is not None:
            raise UserError(f"{self!r} has no log-density: it jumps and follows no velocity; use FixedStep")
        if end < start:
            raise UserError(f"{self!r} cannot go from time {start:g} back to {end:g}: its map is learned forwards only")
        times = [start + (end - start) * t for t in self.times]
        for t, s in pairwise(times):
            jump = field.average(x.new_full((), t), x.new_full((), s), x)
            x = field.space.step(x, (s - t) * jump)
        return Solution(x, None, len(times) - 1)
