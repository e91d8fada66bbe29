"""Fixed-step Runge-Kutta: no decision depends on values, so nothing waits for the device."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.divergence import Divergence
from sciflow.transport.field import Field
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.endpoint import times_of
from sciflow.transport.steppers.tableau import TABLEAUS

__all__ = ["FixedStep"]


class FixedStep(Stepper):
    """`steps` steps of a method of `TABLEAUS`, over equal intervals or between given times.

    Arguments:
        steps: number of steps; or the increasing times (0, ..., 1) to stop at.
        method: "euler", "midpoint", "heun", "ralston", "rk3", "rk4", "bogacki_shampine", "bogacki_shampine5", "dopri5",
            "tsit5".

    On a curved space increments are added in ambient coordinates and each step ends on the space (`Space.step`).
    """

    def __init__(self, steps: int | Sequence[float] = 50, *, method: str = "midpoint") -> None:
        if method not in TABLEAUS:
            raise UserError(f"unknown method {method!r}; known are {', '.join(TABLEAUS)}")
        self.tableau, self.method = TABLEAUS[method], method
        # a last stage that is only the next step's first one is found again there
        count = len(self.tableau.b) - self.tableau.last_is_first
        self._stages = list(zip(self.tableau.a[:count], self.tableau.c[:count], self.tableau.b[:count], strict=True))
        self.ends_at_data = any(c == 1 for _, c, _ in self._stages)
        self.times = times_of(steps)

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        times = [start + (end - start) * t for t in (self.times if end > start else [1 - t for t in reversed(self.times)])]
        trace = None if divergence is None else divergence.bind(field, x)
        total: Tensor | None = None
        remember = getattr(field, "accepted", None)
        for t, s in itertools.pairwise(times):
            h, slopes, traces = s - t, [], []  # type: ignore[var-annotated]
            for row, c, b in self._stages:
                at = x.new_full((), t + c * h)
                point = x + _combined(row, slopes, h) if any(row) else x
                if trace is None or not b:  # a divergence that has no weight is not found
                    slopes.append(field(at, point))
                    traces.append(None)  # type: ignore[arg-type]
                else:
                    v, divergences = trace(at, point)
                    slopes.append(v)
                    traces.append(divergences)
            x = field.space.step(x, _combined(self.tableau.b, slopes, h))
            if remember is not None:
                remember([h * b for b in self.tableau.b[: len(self._stages)]])
            if trace is not None:
                gained = _combined(self.tableau.b, traces, h)
                total = gained if total is None else total + gained
        evaluations = (len(times) - 1) * len(self._stages)
        log_det = None if divergence is None or total is None else divergence.summary(total)
        return Solution(x, log_det, evaluations)


def _combined(weights: Sequence[float], terms: Sequence[Tensor], h: float) -> Tensor:
    used = [(h * weight, term) for weight, term in zip(weights, terms, strict=False) if weight]
    total = used[0][1] * used[0][0]
    for weight, term in used[1:]:
        total = torch.add(total, term, alpha=weight)
    return total
