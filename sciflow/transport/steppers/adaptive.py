"""Adaptive Runge-Kutta: every row has a time and a step size of its own."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.transport.divergence import Divergence
from sciflow.transport.field import Field
from sciflow.transport.steppers.adaptive_rows import Rows, Solve
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.tableau import TABLEAUS

__all__ = ["Adaptive"]


class Adaptive(Stepper):
    r"""An embedded Runge-Kutta pair with step control per row.

    A row is accepted where the root mean square over its features of error / (atol + rtol |x|) is at most 1. Rows neither
    wait for each other nor lend each other precision: a draw does not depend on what else is in the batch, and a
    stiff row costs steps of its own, since finished rows leave the batch.

    Arguments:
        rtol, atol: relative and absolute tolerance; `atol` is `rtol` / 10 if not given.
        method: a pair of `TABLEAUS`: "bogacki_shampine5", "dopri5", "tsit5", "bogacki_shampine" (order 3), "heun".
        max_steps: attempts of a row before the solver gives up.
        first_step: its length; None for |end - start| rtol^(1/order), which fits flows and takes no evaluation. Up to that
            length steps grow fast, beyond it carefully: estimates of long steps are small by chance too often.
        check_every: how many steps go by between two looks at what has finished, each of which waits for the device;
            None for 1 on the CPU, where nothing has to be waited for, and 8 elsewhere.
        density_error: whether the log-density's own error, in nats, must meet the tolerance too.

    Raises `SolverFailed`, which names row, time, step size and error estimate.

    Source: Solving Ordinary Differential Equations I, Hairer, Norsett and Wanner; parallel step control per row as in
    torchode: A Parallel ODE Solver for PyTorch, Lienen and Guennemann 2022, arXiv 2210.12375.
    """

    def __init__(
        self,
        rtol: float = 1e-4,
        atol: float | None = None,
        *,
        method: str = "bogacki_shampine5",
        max_steps: int = 1000,
        first_step: float | None = None,
        check_every: int | None = None,
        density_error: bool = True,
    ) -> None:
        pairs = [name for name, tableau in TABLEAUS.items() if tableau.error is not None]
        if method not in pairs:
            raise UserError(f"method {method!r} has no error estimate or is unknown; adaptive ones are {', '.join(pairs)}")
        self.rtol, self.atol = rtol, rtol / 10 if atol is None else atol
        if not (self.rtol >= 0 and self.atol > 0):
            raise UserError(f"rtol={rtol}, atol={atol}: give tolerances above 0")
        if first_step is not None and not first_step > 0:
            raise UserError(f"first_step={first_step}: give a positive number")
        self.method, self.tableau, self.max_steps = method, TABLEAUS[method], integer("max_steps", max_steps, 1, 2**62)
        self.check_every = None if check_every is None else integer("check_every", check_every, 1, 2**62)
        self.first_step, self.density_error = first_step, density_error

    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution:  # fmt: skip
        rows = self._run(field, x, start, end, divergence, ())
        log_det = None if divergence is None or rows.total is None else divergence.summary(rows.total)
        return Solution(rows.x, log_det, rows.evaluations)

    def trajectory(
        self, field: Field, x: Tensor, times: Sequence[float], *, divergence: Divergence | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Points (T, B, *event) and log-determinants (T, B) at `times`, of which the first is where x lies.

        The times between are read off the pair's interpolant (order 4 for order 5), at no further evaluations.
        """
        if len(times) < 2 or not (all(b > a for a, b in _pairs(times)) or all(b < a for a, b in _pairs(times))):
            raise UserError(f"times={list(times)}: give at least two, rising or falling")
        if self.tableau.dense is None:
            raise UserError(
                f"method {self.method!r} has no interpolant: use 'bogacki_shampine5', 'tsit5', 'dopri5' or 'bogacki_shampine'"
            )
        rows = self._run(field, x, times[0], times[-1], divergence, times)
        assert rows.seen is not None
        if divergence is None or rows.seen_total is None:
            return rows.seen, None
        return rows.seen, torch.stack([divergence.summary(columns).value for columns in rows.seen_total])

    def _run(
        self, field: Field, x: Tensor, start: float, end: float, divergence: Divergence | None, times: Sequence[float]
    ) -> Rows:
        trace = None if divergence is None else divergence.bind(field, x)
        return Solve(self, field, trace, start, end, times).run(x)


def _pairs(times: Sequence[float]) -> list[tuple[float, float]]:
    return list(itertools.pairwise(times))
