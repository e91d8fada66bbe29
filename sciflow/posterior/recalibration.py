"""Conformal recalibration of intervals: a step of its own, labelled wherever its intervals go."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import xarray
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import simulations
from sciflow.posterior.result import Result
from sciflow.store.tree import library, numpy_of

__all__ = ["Intervals", "Recalibration"]

_LEVELS = (0.5, 0.68, 0.8, 0.95)
_SOURCE = "Conformalized Quantile Regression, Romano, Patterson and Candes 2019, arXiv:1905.03222"
_TEXT = "recalibrated: central intervals inflated by split conformal prediction; the draws themselves are unchanged"


@dataclass(frozen=True)
class Intervals:
    """Recalibrated intervals `low` and `high`, (levels, *event), with `inflation` (levels, *event)."""

    levels: tuple[float, ...]
    low: Tensor
    high: Tensor
    inflation: Tensor
    text: str = _TEXT

    def dataset(self, dims: Sequence[str], coords: Mapping[str, Any]) -> xarray.Dataset:
        """As a group of a tree of draws."""
        full = ["level", *dims]
        variables = {name: (full, numpy_of(getattr(self, name))) for name in ("low", "high", "inflation")}
        return xarray.Dataset(variables, {"level": list(self.levels), **coords}, {**library(), "label": self.text})


class Recalibration:
    r"""Factors by which central intervals are inflated (or deflated) so that they cover.

    With median m, and ends a and b of the central interval of q(theta | y_i), the factor that just covers theta_i is
    f_i = max((theta_i - m) / (b - m), (m - theta_i) / (m - a)); the ceil((n + 1) level)-th smallest of n factors makes the
    interval [m - f (m - a), m + f (b - m)] cover a new parameter with probability >= level, for each parameter by itself and
    on average over prior and data. It holds for intervals of L draws: the ends of fewer (more) draws vary more (less), so that
    they need other factors. Coverage for one observation, and joint coverage, are not promised: this mends widths,
    not a posterior.

    Arguments:
        theta, draws: simulations that were not used in training, (n, *event) and (n, L, *event), L as many as `intervals` gets.
        levels: of the central intervals.

    Raises `UserError` if n is too small for a level.

    Source: Conformalized Quantile Regression, Romano, Patterson and Candes 2019, arXiv:1905.03222.

    >>> generator = torch.Generator().manual_seed(0)
    >>> theta, y = torch.randn(2, 1000, 1, generator=generator)
    >>> narrow = 0.5 * torch.randn(1000, 400, 1, generator=generator)
    >>> Recalibration(theta, narrow, levels=(0.68,)).inflation.round().tolist()
    [[2.0]]
    """

    def __init__(self, theta: Tensor, draws: Tensor, *, levels: Sequence[float] = _LEVELS) -> None:
        found = simulations(theta, draws)
        self.levels, self.simulations = tuple(float(level) for level in levels), len(found.theta)
        self.draws = found.draws.shape[1]
        wrong = [level for level in self.levels if not 0 < level < 1]
        if wrong or not self.levels:
            raise UserError(f"levels={list(levels)}: give numbers between 0 and 1, like 0.68")
        n = self.simulations
        if math.ceil((n + 1) * max(self.levels)) > n:
            needed = math.ceil(max(self.levels) / (1 - max(self.levels)))
            raise UserError(f"{n} simulations cannot recalibrate the level {max(self.levels):g}: it needs {needed} or more")
        truth, sample = found.theta.double(), found.draws.double()
        factors = []
        for level in self.levels:
            low, middle, high = _central(sample, level, 1)
            above, below = (truth - middle) / (high - middle), (middle - truth) / (middle - low)
            score = torch.maximum(above, below).nan_to_num(torch.inf)
            factors.append(score.sort(0).values[math.ceil((n + 1) * level) - 1])
        self.inflation = torch.stack(factors)
        if not bool(self.inflation.isfinite().all()):
            raise UserError("some draws are all equal: intervals without width cannot be inflated")

    def intervals(self, draws: Result | Tensor) -> Intervals:
        """Recalibrated intervals of a result, of which L draws are taken by resampling, or of draws (L, *event), for one
        observation. Raises `UserError` for fewer draws than L, and for other tensors.
        """
        if isinstance(draws, Result):
            rows = draws.rows if len(draws.rows) < self.draws else draws.resampled(self.draws)
        else:
            rows = draws
        if len(rows) != self.draws:
            raise UserError(
                f"recalibration was made with {self.draws} draws for each simulation, {len(rows)} were given: give "
                f"{self.draws}, or make it with as many"
            )
        if rows.shape[1:] != self.inflation.shape[1:]:
            raise UserError(
                f"draws of shape {tuple(rows.shape)}: recalibration was made for (L, {tuple(self.inflation.shape[1:])})"
            )
        ends = []
        for level, factor in zip(self.levels, self.inflation.to(rows.device), strict=True):
            low, middle, high = _central(rows.double(), level, 0)
            ends.append((middle - factor * (middle - low), middle + factor * (high - middle)))
        return Intervals(self.levels, torch.stack([a for a, _ in ends]), torch.stack([b for _, b in ends]), self.inflation)

    @property
    def tests(self) -> list[Test]:
        """The inflation factor that is farthest from 1 at each level: reported, it decides nothing."""
        found = []
        for level, factor in zip(self.levels, self.inflation.flatten(1), strict=True):
            worst = factor[factor.clamp_min(1e-300).log().abs().argmax()]
            text = f"recalibrated: what the interval's half-widths were multiplied by ({self.simulations} simulations)"
            found.append(Test(f"inflation of {100 * level:g} % intervals", float(worst), description=text, reference=_SOURCE))
        return found

    def record(self, result: Result) -> Any:
        """The result with the label `recalibrated` and the inflation factors in its certificate; its draws are unchanged."""
        entry = {"label": _TEXT, "levels": list(self.levels), "inflation": self.inflation.tolist()}
        return replace(result, certificate=result.certificate.extended(self.tests, recalibrated=entry))

    def __repr__(self) -> str:
        worst = ", ".join(f"{100 * level:g} %: {test.value:.3g}" for level, test in zip(self.levels, self.tests, strict=True))
        return f"Recalibration(inflation {worst}; {self.simulations} simulations, {self.draws} draws each)"


def _central(draws: Tensor, level: float, dim: int) -> tuple[Tensor, ...]:
    probabilities = torch.tensor([(1 - level) / 2, 0.5, (1 + level) / 2], dtype=draws.dtype, device=draws.device)
    return tuple(torch.quantile(draws, probabilities, dim=dim))
