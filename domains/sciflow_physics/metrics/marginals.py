"""One feature in one category: distances, the probability of its point mass, and what chance alone would give."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from sciflow_physics.metrics.ordering import PooledOrder
from sciflow_physics.metrics.sample import Sample, multiplicities

__all__ = ["MarginalComparison", "Null", "compare_marginals", "null_marginals"]


@dataclass(frozen=True)
class MarginalComparison:
    """Distances between two samples of a feature; errors by bootstrap over events.

    `wasserstein` has the feature's unit; `point_mass` is P(x = point mass) in the first and second sample with its
    errors, None if the feature has none.
    """

    rows: tuple[int, int]
    ks: float
    ks_error: float
    wasserstein: float
    wasserstein_error: float
    point_mass: tuple[float, float] | None = None
    point_mass_error: tuple[float, float] | None = None


@dataclass(frozen=True)
class Null:
    """The same distances between samples of equal size drawn from the data alone: (replicates,) each."""

    ks: NDArray[np.float64]
    point_mass: NDArray[np.float64] | None = None

    def ks_quantile(self, level: float = 0.95) -> float:
        """The Kolmogorov-Smirnov distance that chance exceeds with probability 1 - level."""
        return float(np.quantile(self.ks, level))

    def point_mass_quantile(self, level: float = 0.95) -> float:
        """The difference |P_1(0) - P_2(0)| that chance exceeds with probability 1 - level."""
        if self.point_mass is None:
            raise ValueError("the feature has no point mass")
        return float(np.quantile(self.point_mass, level))


def compare_marginals(
    first: Sample,
    second: Sample,
    name: str,
    category: str,
    *,
    point_mass: float | None = None,
    bootstrap: int = 200,
    seed: int = 0,
) -> MarginalComparison:
    """Weighted Kolmogorov-Smirnov and Wasserstein distances and P(point mass) of one feature in one category.

    Rows where the feature is absent (NaN) take no part. Raises `ValueError` if a sample has no row left.
    """
    rows = [sample.having(name, category) for sample in (first, second)]
    x, y = first.columns[name][rows[0]], second.columns[name][rows[1]]
    order = PooledOrder(x, y)
    wx, wy = first.weight[rows[0]], second.weight[rows[1]]
    events = first.event[rows[0]], second.event[rows[1]]
    distances, masses = [], []
    for one, two in zip(
        multiplicities(first.events, bootstrap, seed), multiplicities(second.events, bootstrap, seed + 1), strict=True
    ):
        vx, vy = wx * one[events[0]], wy * two[events[1]]
        distances.append((order.kolmogorov_smirnov(vx, vy), order.wasserstein(vx, vy)))
        if point_mass is not None:
            masses.append((_fraction(x == point_mass, vx), _fraction(y == point_mass, vy)))
    spread = np.std(distances, axis=0, ddof=1) if bootstrap > 1 else np.full(2, np.nan)
    mass = mass_error = None
    if point_mass is not None:
        mass = (_fraction(x == point_mass, wx), _fraction(y == point_mass, wy))
        mass_error = tuple(float(e) for e in np.std(masses, axis=0, ddof=1)) if bootstrap > 1 else (np.nan, np.nan)
    return MarginalComparison(
        (len(x), len(y)),
        order.kolmogorov_smirnov(wx, wy),
        float(spread[0]),
        order.wasserstein(wx, wy),
        float(spread[1]),
        mass,
        mass_error,  # type: ignore[arg-type]
    )


def null_marginals(
    data: Sample,
    name: str,
    category: str,
    *,
    events: int | None = None,
    weight: NDArray[np.float64] | None = None,
    point_mass: float | None = None,
    replicates: int = 400,
    seed: int = 0,
) -> Null:
    """What two samples of the *same* distribution would show: both drawn from the data, with replacement, by event.

    The first has as many events as the data and the data's weights; the second has `events` events (as many as the
    corrected simulation) whose rows carry, on top of the data's weights, a weight drawn from `weight` (those of the
    corrected simulation in this category), so that the loss of statistical power by weights is part of the null.
    """
    rows = data.having(name, category)
    x, w, event = data.columns[name][rows], data.weight[rows], data.event[rows]
    order = PooledOrder(x, x)
    is_mass = None if point_mass is None else x == point_mass
    extra = None if weight is None else np.asarray(weight, dtype=np.float64) / np.mean(weight)
    rng = np.random.default_rng([seed, 2])
    second_draws = multiplicities(data.events, replicates, seed + 1, events)
    ks, masses = [], []
    for one, two in zip(multiplicities(data.events, replicates, seed), second_draws, strict=True):
        count = two[event]
        v1, v2 = w * one[event], w * count
        if extra is not None:
            drawn = np.repeat(np.arange(len(x)), count)
            v2 = w * np.bincount(drawn, extra[rng.integers(len(extra), size=len(drawn))], minlength=len(x))
        ks.append(order.kolmogorov_smirnov(v1, v2))
        if is_mass is not None:
            masses.append(abs(_fraction(is_mass, v1) - _fraction(is_mass, v2)))
    return Null(np.array(ks), None if is_mass is None else np.array(masses))


def _fraction(hit: NDArray[np.bool_], weight: NDArray[np.float64]) -> float:
    return float(weight[hit].sum() / weight.sum())
