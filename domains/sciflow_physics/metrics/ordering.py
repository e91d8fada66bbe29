"""Statistics of two weighted samples that depend on their common order: Kolmogorov-Smirnov, Wasserstein, AUC."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["PooledOrder", "auc", "kolmogorov_smirnov", "wasserstein"]


class PooledOrder:
    """Two samples x (N,), y (M,) sorted together once; each statistic then costs one cumulative sum.

    Weights may be signed: F(t) = sum of w over x <= t divided by the sum of w, which need not be monotone. Tied
    values (point masses) are one step. A bootstrap changes only the weights, never the order.

    Raises `ValueError` if a sample is empty or not finite, or, in the statistics, if its weights sum to zero or less.

    >>> order = PooledOrder([0.0, 0.0, 1.0], [0.0, 1.0, 2.0])
    >>> round(order.kolmogorov_smirnov(), 6), round(order.wasserstein(), 6)
    (0.333333, 0.666667)
    """

    def __init__(self, x: ArrayLike, y: ArrayLike) -> None:
        first, second = np.asarray(x, dtype=np.float64).ravel(), np.asarray(y, dtype=np.float64).ravel()
        if not len(first) or not len(second):
            raise ValueError(f"both samples need rows, they have {len(first)} and {len(second)}")
        values = np.concatenate([first, second])
        if not np.isfinite(values).all():
            raise ValueError(f"{int((~np.isfinite(values)).sum())} of {len(values)} values are not finite")
        self.sizes = (len(first), len(second))
        self._order = np.argsort(values, kind="stable")
        ordered = values[self._order]
        self._last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        self._steps = np.diff(ordered[self._last])

    def __repr__(self) -> str:
        return f"PooledOrder({self.sizes[0]} rows, {self.sizes[1]} rows, {len(self._last)} distinct values)"

    def kolmogorov_smirnov(self, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
        """max_t |F_x(t) - F_y(t)|."""
        return float(np.abs(self._difference(wx, wy)).max())

    def wasserstein(self, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
        """The 1-Wasserstein distance: the integral of |F_x(t) - F_y(t)| dt, in the unit of the values."""
        return float(np.abs(self._difference(wx, wy)[:-1]) @ self._steps)

    def auc(self, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
        """P(x > y) + P(x = y) / 2, the area under the (signed) cumulative ROC curve with x as the signal."""
        zeros_x, zeros_y = np.zeros(self.sizes[0]), np.zeros(self.sizes[1])
        above = np.diff(self._cumulative(_shares(wx, self.sizes[0]), zeros_y), prepend=0.0)
        below = self._cumulative(zeros_x, _shares(wy, self.sizes[1]))
        return float(above @ (below + np.append(0.0, below[:-1])) / 2)

    def _difference(self, wx: ArrayLike | None, wy: ArrayLike | None) -> NDArray[np.float64]:
        return self._cumulative(_shares(wx, self.sizes[0]), -_shares(wy, self.sizes[1]))

    def _cumulative(self, x: NDArray[np.float64], y: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.cumsum(np.concatenate([x, y])[self._order])[self._last]


def kolmogorov_smirnov(x: ArrayLike, y: ArrayLike, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
    """The weighted two-sample Kolmogorov-Smirnov distance; see `PooledOrder`.

    >>> kolmogorov_smirnov([1, 2], [2, 3], [3, 1], [1, 1])
    0.75
    """
    return PooledOrder(x, y).kolmogorov_smirnov(wx, wy)


def wasserstein(x: ArrayLike, y: ArrayLike, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
    """The weighted 1-Wasserstein distance in the unit of x; see `PooledOrder`.

    >>> wasserstein([0.0, 1.0], [2.0, 3.0])
    2.0
    """
    return PooledOrder(x, y).wasserstein(wx, wy)


def auc(x: ArrayLike, y: ArrayLike, wx: ArrayLike | None = None, wy: ArrayLike | None = None) -> float:
    """The weighted area under the ROC curve of the score x (signal) against the score y; see `PooledOrder`.

    >>> auc([0.9, 0.8, 0.4], [0.1, 0.5, 0.4])
    0.8333333333333334
    """
    return PooledOrder(x, y).auc(wx, wy)


def _shares(weight: ArrayLike | None, rows: int) -> NDArray[np.float64]:
    if weight is None:
        return np.full(rows, 1.0 / rows)
    values = np.asarray(weight, dtype=np.float64)
    if values.shape != (rows,):
        raise ValueError(f"the weights have shape {values.shape}, the sample has shape ({rows},)")
    total = values.sum()
    if not total > 0:
        raise ValueError(f"the weights of {rows} rows sum to {total:g}: a distribution needs a positive sum")
    return values / total
