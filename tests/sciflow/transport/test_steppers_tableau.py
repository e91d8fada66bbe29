"""Tableaus against the order conditions."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from sciflow.transport.steppers.tableau import TABLEAUS


def _trees(size: int) -> list:
    """Rooted trees as sorted tuples of their branches."""
    if size == 1:
        return [()]

    def parts(left: int, largest: int):
        if left == 0:
            yield []
        for first in range(min(left, largest), 0, -1):
            for rest in parts(left - first, first):
                yield [first, *rest]

    choices = (itertools.product(*map(_trees, part)) for part in parts(size - 1, size - 1))
    return sorted({tuple(sorted(branches)) for choice in choices for branches in choice})


def _density(tree) -> int:
    return _nodes(tree) * math.prod(map(_density, tree))


def _nodes(tree) -> int:
    return 1 + sum(map(_nodes, tree))


def _weight(tree, a: np.ndarray) -> np.ndarray:
    return np.prod([a @ _weight(branch, a) for branch in tree], axis=0) if tree else np.ones(len(a))


@pytest.mark.parametrize("name", TABLEAUS)
def test_tableaus_meet_the_order_conditions(name: str) -> None:
    """sum_i b_i Phi_i(tree) = 1 / density(tree) for all rooted trees with at most `order` nodes, and not beyond."""
    tableau = TABLEAUS[name]
    a = np.zeros((len(tableau.b), len(tableau.b)))
    for number, row in enumerate(tableau.a):
        a[number, : len(row)] = row
    np.testing.assert_allclose(a.sum(1), tableau.c, atol=1e-13)
    assert [len(_trees(size)) for size in range(1, 7)] == [1, 1, 2, 4, 9, 20]

    def defect(weights, size: int, u: float = 1.0) -> float:
        return max(abs(np.dot(weights, _weight(tree, a)) - u**size / _density(tree)) for tree in _trees(size))

    assert max(defect(tableau.b, size) for size in range(1, tableau.order + 1)) < 1e-13
    assert defect(tableau.b, tableau.order + 1) > 1e-5
    if tableau.error is not None:
        embedded = np.array(tableau.b) - np.array(tableau.error)
        assert max(defect(embedded, size) for size in range(1, tableau.order)) < 1e-13
        assert defect(embedded, tableau.order) > 1e-5
    if tableau.dense is not None:
        dense = np.array(tableau.dense)
        for u in (0.3, 0.8):
            weights = dense @ u ** np.arange(1, dense.shape[1] + 1)
            assert max(defect(weights, size, u) for size in range(1, min(tableau.order, 4) + 1)) < 1e-13
        np.testing.assert_allclose(dense.sum(1), tableau.b, atol=1e-13)
    if tableau.last_is_first:
        np.testing.assert_allclose(a[-1], tableau.b)
