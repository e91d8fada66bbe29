"""Training under constraints with tolerances in physical units: the modified differential method of multipliers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training.constraint import Constraint
from sciflow.training.objective import Batch, Objective
from sciflow.training.processes import process_count, sum_over_processes

__all__ = ["Constrained"]


class Constrained(Objective):
    r"""minimise f subject to C_k <= eps_k (and =, >=, between), by gradient descent and projected multiplier ascent.

    With h_k = (C_k - eps_k) / scale_k the loss is the augmented Lagrangian without slack variables

        f + sum_k [max(0, a_k + d h_k)^2 - a_k^2] / (2 d),        a_k <- max(0, a_k + rate * clip(h_k, -1, 1)) after each step;

    for equalities a_k h_k + d h_k^2 / 2 and a_k of either sign. In the force max(0, a_k + d h_k) h_k is a running mean over
    the batches before (see `smoothing`). At the optimum lambda_k = a_k / scale_k = -df*/d eps_k
    is the price of the tolerance: relaxing it by one unit lowers the loss by lambda_k.

    The multipliers are buffers with their own update: no optimiser, learning-rate schedule or weight decay sees them.
    In several processes C_k is the weighted mean of their values: exact if C_k is a mean over rows.

    Arguments:
        objective: what is minimised.
        constraints: what has to hold. C_k is computed on batches: a statistic that is biased on few rows needs large
            ones, and so does a tolerance (scale) far below the batch-to-batch noise (see `report`).
        rate: of the multiplier ascent, per optimiser step.
        damping: d; does not move the optimum, suppresses oscillation (rate < learning speed * d^2 / 4).
        smoothing: weight of the past in the running mean of C_k in the force, 0.9 for about ten batches.
        margin: violations up to margin * scale count as none when the best epoch is chosen.

    Sources: Constrained differential optimization (Platt and Barr, 1987); Transforming simulation to data without
    pairing (2025, arXiv 2504.12343).

    >>> from sciflow.training import MaximumLikelihood
    >>> narrow = Constraint.maximum(lambda flow, batch: flow().scale.mean(), 0.5, name="width", unit="cm")
    >>> Constrained(MaximumLikelihood(), [narrow])
    Constrained(width <= 0.5 cm; rate 0.02, damping 1.0)
    """

    multipliers: Tensor
    averages: Tensor
    _factor: Tensor
    _bound: Tensor
    _floor: Tensor
    values: Tensor
    recent: Tensor
    spread: Tensor
    steps: Tensor

    def __init__(
        self,
        objective: Objective,
        constraints: Sequence[Constraint],
        *,
        rate: float = 0.02,
        damping: float = 1.0,
        smoothing: float = 0.9,
        margin: float = 0.02,
    ) -> None:
        super().__init__()
        names = [constraint.name for constraint in constraints]
        if not constraints or len(set(names)) < len(names):
            raise UserError(
                f"the constraints are named {', '.join(names) or 'nothing'}: give at least one, each with a name of its own"
            )
        if not (rate > 0 and damping > 0 and margin >= 0 and 0 <= smoothing < 1):
            raise UserError(
                f"rate={rate}, damping={damping}, margin={margin}, smoothing={smoothing}: give positive ones, smoothing < 1"
            )
        self.objective, self.constraints = objective, tuple(constraints)
        self.smoothing = smoothing
        self.rate, self.damping, self.margin = rate, damping, margin
        sides = [(k, c, sign, bound) for k, c in enumerate(self.constraints) for sign, bound in c.sides()]
        self._which = [k for k, *_ in sides]

        def fixed(numbers: list[float]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.float64)

        self.register_buffer("_factor", fixed([sign / c.scale for _, c, sign, _ in sides]), persistent=False)
        self.register_buffer("_bound", fixed([bound for *_, bound in sides]), persistent=False)
        equal = [c.lower == c.upper for _, c, *_ in sides]
        self.register_buffer("_floor", fixed([-math.inf if e else 0.0 for e in equal]), persistent=False)
        for name in ("multipliers", "averages"):
            self.register_buffer(name, torch.zeros(len(sides), dtype=torch.float64))
        for name in ("values", "recent", "spread"):
            self.register_buffer(name, torch.zeros(len(self.constraints), dtype=torch.float64))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._last: Tensor | None = None

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        return self.objective(flow, batch)

    def penalty(self, flow: nn.Module, batch: Batch) -> Tensor:
        inner = self.objective.penalty(flow, batch)
        found = self._evaluate(flow, batch)
        values = self._over_processes(found, batch)
        if self.training:
            self._last = values.detach()
        h = (values[self._which] - self._bound) * self._factor
        # the force uses values of earlier batches only: with its own batch's, the noise of h and of its gradient would be
        # correlated, which shifts the optimum and the multiplier by the variance of C
        before = torch.where(self.steps == 0, values.detach(), self.recent)
        past = (before[self._which] - self._bound) * self._factor
        pull = torch.maximum(self.multipliers + self.damping * past, self._floor)
        term = (pull.square() - self.multipliers.square()).sum() / (2 * self.damping) + (pull * (h - h.detach())).sum()
        term = term.to(found.dtype)
        return term if inner is None else inner + term

    @torch.no_grad()
    def after_step(self) -> None:
        """Projected ascent of the multipliers, with the values that the step has seen."""
        self.objective.after_step()
        if self._last is None:
            return
        # far from feasible the damping does the work: a multiplier that summed large violations would take an age to come down
        h = ((self._last[self._which] - self._bound) * self._factor).clamp(-1.0, 1.0)
        self.multipliers.copy_(torch.maximum(self.multipliers + self.rate * h, self._floor))
        # averages over about the last tenth of the steps: batches fluctuate
        share = 10.0 / (self.steps.double() + 10.0)
        self.averages.lerp_(self.multipliers, share)
        self.values.lerp_(self._last, torch.where(self.steps == 0, torch.ones_like(share), share))
        first = torch.as_tensor(self.steps == 0)
        self.spread.lerp_((self._last - torch.where(first, self._last, self.recent)).square(), share)
        self.recent.copy_(torch.where(first, self._last, self.smoothing * self.recent + (1 - self.smoothing) * self._last))
        self.steps += 1
        self._last = None

    def measure(self, flow: nn.Module, batch: Batch) -> dict[str, Tensor]:
        found = dict(zip([c.name for c in self.constraints], self._evaluate(flow, batch), strict=True))
        return {**self.objective.measure(flow, batch), **found}

    def merit(self, loss: float, measured: Mapping[str, float]) -> float:
        """Epochs whose constraints hold come first, by their loss; the others by how much they violate."""
        excess = sum(max(c.violation(measured[c.name]) / c.scale - self.margin, 0.0) for c in self.constraints)
        return self.objective.merit(loss, measured) + 1e6 * excess

    def report(self) -> dict[str, Any]:
        """Per constraint: value (running mean), its noise from batch to batch, slack, price now and its running mean."""
        found: dict[str, Any] = {}
        prices, means = (self._factor.abs() * m for m in (self.multipliers, self.averages))
        for k, (constraint, value) in enumerate(zip(self.constraints, self.values.tolist(), strict=True)):
            sides = [n for n, which in enumerate(self._which) if which == k]
            # both sides of `between` never press at once: the price of the one that does
            side = max(sides, key=lambda n: abs(means[n].item()))
            distance = constraint.violation(value)
            slack = -distance if distance else min(value - constraint.lower, constraint.upper - value)
            found[constraint.name] = {
                "bound": repr(constraint), "unit": constraint.unit, "value": value, "slack": slack,
                "noise": self.spread[k].sqrt().item(), "noisy": bool(self.spread[k].sqrt() > constraint.scale),
                "holds": distance <= self.margin * constraint.scale,
                "side": "" if len(sides) == 1 else ("upper" if self._factor[side] > 0 else "lower"),
                "multiplier": prices[side].item(), "multiplier_mean": means[side].item(),
            }  # fmt: skip
        return {**self.objective.report(), "constraints": found}

    def summary(self) -> str:
        """One line per constraint, with the meaning of its multiplier."""
        lines = []
        for entry in self.report()["constraints"].values():
            unit, price = entry["unit"] or "unit", entry["multiplier_mean"]
            state = "holds" if entry["holds"] else "VIOLATED"
            what = "raising the value" if " = " in entry["bound"] else f"relaxing the {entry['side']} bound"
            effect = "changes nothing" if price == 0 else f"{'lowers' if price > 0 else 'raises'} the loss by {abs(price):.4g}"
            lines.append(
                f"{entry['bound']}: {entry['value']:.5g}, slack {entry['slack']:.3g}, {state}; "
                f"{what} by 1 {unit} {effect}".replace("  ", " ")
                + (f"; noise of a batch {entry['noise']:.2g}: larger batches or scale needed" if entry["noisy"] else "")
            )
        return "\n".join(lines)

    def extra_repr(self) -> str:
        return f"{', '.join(map(repr, self.constraints))}; rate {self.rate}, damping {self.damping}"

    def __repr__(self) -> str:
        return f"Constrained({self.extra_repr()})"

    def _evaluate(self, flow: nn.Module, batch: Batch) -> Tensor:
        found = [constraint.function(flow, batch) for constraint in self.constraints]
        for constraint, value in zip(self.constraints, found, strict=True):
            if value.shape != ():
                raise ValueError(f"constraint {constraint.name!r} returned shape {tuple(value.shape)}, expected a scalar ()")
        return torch.stack(found)

    def _over_processes(self, values: Tensor, batch: Batch) -> Tensor:
        """The weighted mean over processes in value; in gradient its own part, times their number (gradients are averaged)."""
        values = values.double()
        if process_count() == 1:
            return values
        rows = values.new_tensor(float(len(batch.x))) if batch.weight is None else batch.weight.double().sum()
        # a process without weight has nothing to say: its NaN would survive a multiplication by zero
        own = values * rows if bool(rows != 0) else torch.zeros_like(values)
        sums = sum_over_processes(torch.cat([own.detach(), rows[None]]))
        return sums[:-1] / sums[-1] + process_count() * (own - own.detach()) / sums[-1]
