"""Rows of a dataset as arrays, checked once, in the order a correction uses them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow import noise
from sciflow.errors import UserError
from sciflow_physics.data.roles import Roles

__all__ = ["Sample", "categories_of", "fold_of", "poisson", "sample_of"]


class Sample(NamedTuple):
    """N rows: features x (N, D), conditions (N, C), category codes (N,) with -1 for an unknown one, and their identity."""

    x: NDArray[np.float64]
    conditions: NDArray[np.float64]
    category: NDArray[np.int64]
    weight: NDArray[np.float64]
    mask: NDArray[np.bool_]
    event: NDArray[np.int64]
    id: NDArray[np.int64]

    def take(self, rows: NDArray) -> Sample:
        """Some of the rows, by index or boolean mask."""
        return Sample(*(column[rows] for column in self))

    def covariates(self, categories: int, *, features: bool) -> NDArray[np.float64]:
        """Columns for a classifier: conditions, category indicators and, if wanted, features with their presence."""
        columns = [self.conditions]
        if categories > 1:
            columns.append((self.category[:, None] == np.arange(categories)).astype(np.float64))
        if features:
            columns += [np.where(self.mask, self.x, 0.0), self.mask[:, ~self.mask.all(0)].astype(np.float64)]
        return np.concatenate(columns, axis=1)


def sample_of(dataset: xr.Dataset, roles: Roles, categories: Sequence[str], *, name: str = "the dataset") -> Sample:
    """The rows of a dataset. Raises `UserError` for missing columns and for NaN or infinity, naming both."""
    wanted = [*roles.feature_names, *roles.condition_names, *(["category"] if roles.category else [])]
    missing = [column for column in [*wanted, "event", "id"] if column not in dataset]
    if missing:
        raise UserError(f"{name} lacks {', '.join(map(repr, missing))}; it has {', '.join(map(str, dataset.variables))}")
    rows = dataset.sizes["row"]
    mask = roles.mask(dataset)
    x = np.where(mask, roles.matrix(dataset, roles.feature_names), 0.0)
    conditions = roles.matrix(dataset, roles.condition_names)
    weight = np.asarray(dataset["weight"].values, np.float64) if "weight" in dataset else np.ones(rows)
    columns = [*roles.feature_names, *roles.condition_names, "weight"]
    for j, column in enumerate(np.concatenate([x, conditions, weight[:, None]], axis=1).T):
        bad = ~np.isfinite(column)
        if bad.any():
            first = int(np.argmax(bad))
            raise UserError(
                f"{name}: column {columns[j]!r} has {int(bad.sum())} values that are not finite (first in row {first})"
            )
    for role in roles.features.values():
        factor = role.scale({key: dataset[key].values for key in role.scale.names}) if role.scale else np.ones(1)
        if not (np.isfinite(factor) & (factor > 0)).all():
            raise UserError(f"{name}: the scale {role.scale.text!r} of {role.name!r} is not positive everywhere")  # type: ignore[union-attr]
    category = np.zeros(rows, np.int64)
    if roles.category:
        found = np.asarray(dataset["category"].values).astype(str)
        category = np.full(rows, -1, np.int64)
        for code, value in enumerate(categories):
            category[found == value] = code
    event, identity = (np.asarray(dataset[key].values, np.int64) for key in ("event", "id"))
    return Sample(x, conditions, category, weight, mask, event, identity)


def categories_of(roles: Roles, *datasets: xr.Dataset) -> list[str]:
    """The categories that occur in every one of the datasets, sorted; empty without a category role.

    Raises `UserError` if there is none in common.
    """
    if roles.category is None:
        return []
    found = [set(np.unique(np.asarray(dataset["category"].values).astype(str)).tolist()) for dataset in datasets]
    common = sorted(set.intersection(*found))
    if not common:
        raise UserError(f"no category occurs in both samples: {' against '.join(', '.join(sorted(entry)) for entry in found)}")
    return common


def fold_of(event: NDArray[np.int64], folds: int, seed: int = 0) -> NDArray[np.int64]:
    """The fold of each event, 0 ... folds - 1: a hash of the event's number, the same in any file, order or chunk.

    >>> fold_of(np.array([163286, 7, 163286]), 2).tolist()
    [1, 0, 1]
    """
    return np.floor(_uniform(event, seed, "fold") * folds).astype(np.int64)


def poisson(event: NDArray[np.int64], seed: int, stream: str) -> NDArray[np.float64]:
    """Bootstrap weights: Poisson(1) per event, by inverse distribution of a hash of its number."""
    uniform, count = _uniform(event, seed, stream), np.zeros(len(event))
    probability = total = np.exp(-1.0)
    for k in range(1, 20):
        count += uniform > total
        probability /= k
        total += probability
    return count


def _uniform(event: NDArray[np.int64], seed: int, stream: str) -> NDArray[np.float64]:
    # the counter takes non-negative words; the halves of the number are enough to tell events apart
    import torch

    number = torch.from_numpy(np.ascontiguousarray(event) & np.int64(2**63 - 1))
    return noise.uniform(seed, stream, number, 1)[:, 0].numpy()
