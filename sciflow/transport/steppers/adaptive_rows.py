"""The loop of the adaptive stepper: what every row carries, one step of all, and who leaves."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sciflow.networks.time_network import expand_time
from sciflow.transport.divergence import Trace
from sciflow.transport.field import Field
from sciflow.transport.steppers.adaptive_control import Controller, ErrorNorm, failure

if TYPE_CHECKING:
    from sciflow.transport.steppers.adaptive import Adaptive

__all__ = ["Rows", "Solve"]


@dataclasses.dataclass
class Rows:
    """What n rows carry. Rows lie along axis 0, in `seen` and `seen_total` (solutions at requested times) along axis 1."""

    number: Tensor  # of the row in the batch
    x: Tensor
    t: Tensor
    h: Tensor  # length of the next step, positive
    error: Tensor  # of the last attempt
    previous: Tensor  # error of the last accepted step, for the controller
    evaluations: Tensor
    slope: Tensor | None = None
    total: Tensor | None = None  # accumulated divergences (n, K)
    rate: Tensor | None = None  # divergences at x
    seen: Tensor | None = None
    seen_total: Tensor | None = None

    def __getitem__(self, index: Tensor) -> Rows:
        return Rows(**{name: value[:, index] if _late(name) else value[index] for name, value in self._present()})

    @staticmethod
    def joined(parts: Sequence[Rows]) -> Rows:
        """All rows in the order of the batch."""
        order = torch.argsort(torch.cat([part.number for part in parts]))
        names = [name for name, _ in parts[0]._present()]
        columns = {name: torch.cat([getattr(part, name) for part in parts], 1 if _late(name) else 0) for name in names}
        return Rows(**columns)[order]

    def _present(self) -> list[tuple[str, Tensor]]:
        every = [(entry.name, getattr(self, entry.name)) for entry in dataclasses.fields(self)]
        return [(name, value) for name, value in every if value is not None]


class Solve:
    """One solution: options, field and interval. `run` follows rows to the end."""

    def __init__(
        self, options: Adaptive, field: Field, trace: Trace | None, start: float, end: float, times: Sequence[float]
    ) -> None:
        self.options, self.tableau, self.counted = options, options.tableau, options.tableau.counted
        self.field, self.trace, self.start, self.end, self.times = field, trace, start, end, times
        self.span, self.sign = abs(end - start), math.copysign(1.0, end - start)
        order = self.tableau.order if self.tableau.order > 2 else 2
        self.controller = Controller(order)
        self.expected = self.controller.expected(max(options.rtol, options.atol), self.span)
        self.first = self.expected if options.first_step is None else min(options.first_step, self.span)
        # a field that remembers its evaluations, or a point that was folded back on the space, needs a fresh first slope
        self.reuse = self.tableau.last_is_first and field.space.euclidean and not hasattr(field, "accepted")

    def run(self, x: Tensor) -> Rows:
        every = self.options.check_every or (1 if x.device.type == "cpu" else 8)
        rows, finished = self._begin(x), []
        for attempt in range(self.options.max_steps):
            if attempt % every == 0:
                status = self._status(rows)
                if not bool((status == 0).any()):
                    break
                going = (status == 0).nonzero()[:, 0]
                # leaving costs a copy of what the others carry
                if len(going) < 0.95 * len(status):
                    fields = self._restricted(going.to(x.device))
                    if fields is not None:
                        finished.append(rows[(status == 1).nonzero()[:, 0].to(x.device)])
                        rows = rows[going.to(x.device)]
                        self.field, self.trace = fields
            self._step(rows)
        else:
            status = self._status(rows)
            left = (status == 0).nonzero()[:, 0]
            if len(left):
                raise self._failed(rows, int(left[0]), self.options.max_steps)
        return Rows.joined([*finished, rows])

    def _begin(self, x: Tensor) -> Rows:
        time = torch.float64 if x.dtype == torch.float64 else torch.float32
        n, like = len(x), {"dtype": time, "device": x.device}
        t = torch.full((n,), self.start, **like)  # type: ignore[call-overload]
        ones = torch.ones(n, **like)  # type: ignore[call-overload]
        rows = Rows(torch.arange(n, device=x.device), x, t, ones, ones * 0, ones, torch.zeros_like(t, dtype=torch.int64))
        rate = None
        if self.reuse or self.trace is not None:
            v, rate = self._slopes(t, x)
            rows.evaluations = rows.evaluations + 1
        if rate is not None:
            rows.total = torch.zeros_like(rate)
        if self.reuse:
            rows.slope, rows.rate = v, rate
        if self.times:
            rows.seen = x.unsqueeze(0).expand(len(self.times), *x.shape)
            rows.seen_total = None if rows.total is None else rows.total.unsqueeze(0).expand(len(self.times), *rate.shape)  # type: ignore[union-attr]
        rows.h = ones * self.first
        return rows

    def _step(self, rows: Rows) -> None:
        tableau, x, t = self.tableau, rows.x, rows.t
        left = (self.end - t).abs()
        # equal steps to the end cost no more than long ones with a short last one
        h = left / torch.ceil(left / rows.h - 1e-3).clamp_min(1.0)
        going = left > 0
        signed = self.sign * h
        step, wide = expand_time(signed, x).to(x.dtype), signed.unsqueeze(1).to(x.dtype)
        slopes: list[Tensor] = []
        rates: list[Tensor] = []
        for row, c, counted in zip(tableau.a, tableau.c, self.counted, strict=True):
            if not slopes and rows.slope is not None:
                v, rate = rows.slope, rows.rate
            else:
                point = x + step * _combined(row, slopes) if slopes else x
                # the last stage is at the end of the step exactly
                at = t + c * signed if c != 1.0 else torch.where(h >= left, self.end, t + signed)
                # a divergence that no weight counts is not found: what stands in for it is multiplied by 0
                v, rate = self._slopes(at, point) if counted or not rates else (self.field(at, point), rates[-1])
            slopes.append(v)
            if rate is not None:
                rates.append(rate)
        rows.evaluations = rows.evaluations + going * (len(tableau.b) - (1 if rows.slope is not None else 0))
        increment = step * _combined(tableau.b, slopes)
        assert tableau.error is not None
        with torch.no_grad():
            norm = ErrorNorm(self.options.rtol, self.options.atol, self.field.mask)
            # the unfolded increment: a reflection is no error
            error = norm(step * _combined(tableau.error, slopes), x, x + increment)
            if rows.total is not None and self.options.density_error:
                gained = wide * _combined(tableau.b, rates)
                mistake = wide * _combined(tableau.error, rates)
                error = torch.maximum(error, norm.columns(mistake, rows.total, rows.total + gained))
            error = error.to(t.dtype)
            good = error <= 1.0  # False for NaN
            accepted = good & going
            factor = self.controller.factor(error, rows.previous, good, self.expected / h)
        chosen = expand_time(accepted, x)
        if rows.seen is not None:
            self._look(rows, signed, accepted, slopes, rates)
        rows.x = torch.where(chosen, self.field.space.step(x, increment), x)
        if rows.total is not None:
            rows.total = torch.where(accepted[:, None], rows.total + wide * _combined(tableau.b, rates), rows.total)
        if rows.slope is not None:
            rows.slope = torch.where(chosen, slopes[-1], slopes[0])
            rows.rate = None if rows.rate is None else torch.where(accepted[:, None], rates[-1], rates[0])
        remember = getattr(self.field, "accepted", None)
        if remember is not None:
            remember([torch.where(accepted, signed * b, 0.0) for b in tableau.b])
        rows.t = torch.where(accepted, torch.where(h >= left, self.end, t + signed), t)
        rows.h = torch.where(going, h * factor, rows.h)
        rows.error = torch.where(going, error, 0.0)
        rows.previous = torch.where(accepted, error.clamp_min(1e-4), rows.previous)

    def _look(self, rows: Rows, signed: Tensor, accepted: Tensor, slopes: list[Tensor], rates: list[Tensor]) -> None:
        """The solution at requested times within the step, by the interpolant."""
        dense = self.tableau.dense
        assert dense is not None and rows.seen is not None
        times = torch.tensor(self.times, dtype=rows.t.dtype, device=rows.t.device)
        u = (times[:, None] - rows.t) / torch.where(accepted, signed, 1.0)  # (T, n)
        # some ulps beyond the end: what rounds to it belongs to it
        within = accepted & (u > 0) & (u <= 1 + 1e-5)
        powers = [u**p for p in range(1, max(map(len, dense)) + 1)]
        weights = [
            signed * sum((w * power for w, power in zip(row, powers, strict=False)), torch.zeros_like(u)) for row in dense
        ]
        shape = (*u.shape, *[1] * (rows.x.dim() - 1))
        terms = [w.to(rows.x.dtype).reshape(shape) * v for w, v in zip(weights, slopes, strict=True)]
        moved = torch.stack(terms).sum(0)
        flat = self.field.space.step(rows.x.expand_as(moved).flatten(0, 1), moved.flatten(0, 1))
        rows.seen = torch.where(within.reshape(shape), flat.reshape(rows.seen.shape), rows.seen)
        if rows.seen_total is not None and rows.total is not None:
            gained = sum(w.to(rows.x.dtype).unsqueeze(2) * rate for w, rate in zip(weights, rates, strict=True))
            rows.seen_total = torch.where(within.unsqueeze(2), rows.total + gained, rows.seen_total)

    def _slopes(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor | None]:
        return (self.field(t, x), None) if self.trace is None else self.trace(t, x)

    def _restricted(self, index: Tensor) -> tuple[Field, Trace | None] | None:
        """Field and trace of some of the rows."""
        if self.trace is not None:
            trace = self.trace.rows(index)
            return None if trace is None else (trace.field, trace)
        field = self.field.rows(index)
        return None if field is None else (field, None)

    def _status(self, rows: Rows) -> Tensor:
        """0 under way, 1 done, per row; this waits for the device. Raises `SolverFailed`."""
        stuck = (rows.t != self.end) & ~(rows.h > self.controller.smallest_step(rows.t, self.span))
        status = torch.where(rows.t == self.end, 1, torch.where(stuck, 2, 0)).cpu()
        stopped = (status == 2).nonzero()[:, 0]
        if len(stopped):
            raise self._failed(rows, int(stopped[0]), None)
        return status

    def _failed(self, rows: Rows, row: int, steps: int | None) -> Exception:
        options = self.options
        number, t, h, error = (float(value[row]) for value in (rows.number, rows.t, rows.h, rows.error))
        return failure(int(number), t, h, error, options.method, options.rtol, options.atol, steps)


def _late(name: str) -> bool:
    return name in ("seen", "seen_total")


def _combined(weights: Sequence[float], terms: Sequence[Tensor]) -> Tensor:
    used = [(weight, term) for weight, term in zip(weights, terms, strict=False) if weight]
    total = used[0][1] * used[0][0]
    for weight, term in used[1:]:
        total = torch.add(total, term, alpha=weight)
    return total
