"""A weighted sample as arrays, and resampling by event."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

__all__ = ["Sample", "fold_of_event", "multiplicities"]


@dataclass(frozen=True)
class Sample:
    """Rows as columns of float64, absent values as NaN; rows of one event share an entry of `event` (0 ... events-1)."""

    columns: dict[str, NDArray[np.float64]]
    weight: NDArray[np.float64]
    category: NDArray[Any]
    event: NDArray[np.int64]
    events: int

    def __repr__(self) -> str:
        return f"Sample({len(self.weight)} rows of {self.events} events, {', '.join(self.columns)})"

    @classmethod
    def from_dataset(
        cls, dataset: xr.Dataset, roles: Any, *, corrected: bool = False, weight: NDArray[np.float64] | None = None
    ) -> Sample:
        """The features (their `_corr` columns where `corrected`), conditions and auxiliaries of a data set of rows.

        `weight` replaces the data set's own. Where a feature does not exist for a row the column is NaN.
        """
        columns: dict[str, NDArray[np.float64]] = {}
        present = np.asarray(roles.mask(dataset), dtype=bool)
        for index, name in enumerate(roles.feature_names):
            column = f"{name}_corr" if corrected else name
            columns[name] = np.where(present[:, index], dataset[column].values.astype(np.float64), np.nan)
        for name in [*roles.condition_names, *(entry for entry in roles.auxiliary if entry in dataset)]:
            columns[name] = dataset[name].values.astype(np.float64)
        rows = dataset.sizes["row"]
        category = dataset["category"].values.astype(str) if "category" in dataset else np.full(rows, "all")
        values, event = np.unique(dataset["event"].values, return_inverse=True)
        if weight is None:
            weight = dataset["weight"].values.astype(np.float64) if "weight" in dataset else np.ones(rows)
        return cls(columns, weight, category, event.astype(np.int64), len(values))

    def matrix(self, names: Sequence[str], *, category: bool = False) -> NDArray[np.float64]:
        """The named columns as (rows, names), with the category's code as a last column if asked."""
        columns = [self.columns[name] for name in names]
        if category:
            columns.append(np.unique(self.category, return_inverse=True)[1].astype(np.float64))
        return np.stack(columns, axis=1)

    def having(self, name: str, category: str) -> NDArray[np.bool_]:
        """The rows of a category where the column is present."""
        return (self.category == category) & ~np.isnan(self.columns[name])

    def effective_events(self, rows: NDArray[np.bool_] | None = None) -> float:
        """(sum w)^2 over the sum of squares of the events' weights, of all or some rows; 0 without a positive total."""
        event, weight = (self.event, self.weight) if rows is None else (self.event[rows], self.weight[rows])
        total = np.bincount(event, weight, minlength=1)
        return float(total.sum() ** 2 / (total**2).sum()) if total.sum() > 0 else 0.0

    def select(self, rows: NDArray[np.bool_]) -> Sample:
        """The rows where `rows` is True; events are renumbered."""
        values, event = np.unique(self.event[rows], return_inverse=True)
        columns = {name: column[rows] for name, column in self.columns.items()}
        return Sample(columns, self.weight[rows], self.category[rows], event.astype(np.int64), len(values))


def multiplicities(events: int, replicates: int, seed: int, draws: int | None = None) -> Iterator[NDArray[np.int64]]:
    """Bootstrap: how often each event is drawn (events,) in each of `replicates` resamplings with replacement.

    The same arguments give the same replicates, so that statistics of one sample can be compared pairwise.

    >>> [int(counts.sum()) for counts in multiplicities(10, 2, seed=0)]
    [10, 10]
    """
    rng = np.random.default_rng([seed, events])
    for _ in range(replicates):
        yield np.bincount(rng.integers(events, size=events if draws is None else draws), minlength=events)


def fold_of_event(events: int, folds: int, seed: int) -> NDArray[np.int64]:
    """A fold (events,) for each event, balanced to one event, at random.

    Raises `ValueError` if there are fewer events than folds.
    """
    if events < folds:
        raise ValueError(f"{events} events cannot fill {folds} folds")
    return np.random.default_rng([seed, events, folds]).permutation(np.arange(events) % folds)
