"""How features hang together: weighted correlations, and profiles of a feature against a condition."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

__all__ = ["Profile", "correlation", "correlation_difference", "profile"]


def correlation(x: ArrayLike, weight: ArrayLike | None = None, *, rank: bool = False) -> NDArray[np.float64]:
    """The weighted correlation matrix (D, D) of rows x (N, D): Pearson's, or Spearman's with `rank`.

    Ranks are weighted mid-ranks, so that an integer weight equals a repetition. Weights may be signed. Pairs with an
    absent value (NaN) are left out pairwise; a column without variance has correlation NaN with all others.

    >>> correlation([[0.0, 1.0], [1.0, 3.0], [2.0, 5.0]]).round(12)
    array([[1., 1.], [1., 1.]])
    """
    rows = np.asarray(x, dtype=np.float64)
    w = np.ones(len(rows)) if weight is None else np.asarray(weight, dtype=np.float64)
    if rows.ndim != 2 or w.shape != (len(rows),):
        raise ValueError(f"rows of shape {rows.shape} and weights of shape {w.shape} do not match, expected (N, D) and (N,)")
    features = rows.shape[1]
    result = np.full((features, features), np.nan)
    for i in range(features):
        for j in range(i + 1):
            both = ~(np.isnan(rows[:, i]) | np.isnan(rows[:, j]))
            a, b, v = rows[both, i], rows[both, j], w[both]
            if rank:
                a, b = _mid_ranks(a, v), _mid_ranks(b, v)
            result[i, j] = result[j, i] = _pearson(a, b, v)
    return result


def correlation_difference(
    first: ArrayLike,
    second: ArrayLike,
    first_weight: ArrayLike | None = None,
    second_weight: ArrayLike | None = None,
    *,
    rank: bool = False,
) -> NDArray[np.float64]:
    """The correlation matrix of `first` minus that of `second`, (D, D)."""
    return correlation(first, first_weight, rank=rank) - correlation(second, second_weight, rank=rank)


@dataclass(frozen=True)
class Profile:
    """Weighted mean of a quantity in bins of another: `mean` +- `error` (bins,) between `edges` (bins + 1,)."""

    edges: NDArray[np.float64]
    mean: NDArray[np.float64]
    error: NDArray[np.float64]
    rows: NDArray[np.int64]


def profile(
    y: ArrayLike, x: ArrayLike, edges: ArrayLike, weight: ArrayLike | None = None, event: ArrayLike | None = None
) -> Profile:
    r"""The mean of y in bins of x, m = sum w y / sum w, with its error by event.

    error^2 = sum_e (sum_{rows of e} w (y - m))^2 / (sum w)^2, the linearised error when events e are independent and
    rows within an event are not. Bins without rows, or whose weights do not sum to more than zero, are NaN.

    >>> profile([1.0, 3.0, 5.0], [0.1, 0.2, 1.5], [0, 1, 2]).mean
    array([2., 5.])
    """
    values, position = np.asarray(y, dtype=np.float64), np.asarray(x, dtype=np.float64)
    bins = np.asarray(edges, dtype=np.float64)
    w = np.ones(len(values)) if weight is None else np.asarray(weight, dtype=np.float64)
    group = np.arange(len(values)) if event is None else np.unique(np.asarray(event), return_inverse=True)[1]
    which = np.digitize(position, bins) - 1
    which[position == bins[-1]] = len(bins) - 2  # the last bin is closed, as in numpy.histogram
    which[np.isnan(values)] = -1
    means, errors = np.full(len(bins) - 1, np.nan), np.full(len(bins) - 1, np.nan)
    rows = np.zeros(len(bins) - 1, dtype=np.int64)
    for index in range(len(bins) - 1):
        inside = which == index
        rows[index] = inside.sum()
        total = w[inside].sum()
        if not total > 0:
            continue
        means[index] = w[inside] @ values[inside] / total
        residuals = np.bincount(group[inside], w[inside] * (values[inside] - means[index]))
        errors[index] = np.sqrt((residuals**2).sum()) / total
    return Profile(bins, means, errors, rows)


def _pearson(a: NDArray[np.float64], b: NDArray[np.float64], w: NDArray[np.float64]) -> float:
    total = w.sum()
    if not total > 0:
        return float("nan")
    da, db = a - w @ a / total, b - w @ b / total
    variance = (w @ (da * da)) * (w @ (db * db))
    return float(w @ (da * db) / np.sqrt(variance)) if variance > 0 else float("nan")


def _mid_ranks(a: NDArray[np.float64], w: NDArray[np.float64]) -> NDArray[np.float64]:
    _, place = np.unique(a, return_inverse=True)
    mass = np.bincount(place, w)
    return (np.cumsum(mass) - mass / 2)[place]
