"""Boosted trees as plain arrays, so that a fitted classifier is saved with the model and needs no pickle."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sciflow.recorded import Recorded

__all__ = ["TreeEnsemble", "boosted_trees"]


def boosted_trees(x: NDArray, label: NDArray, weight: NDArray, *, seed: int = 0, iterations: int = 150, leaves: int = 8) -> Any:
    """A gradient-boosted classifier that stops early; shallow, because a density ratio of few events is smooth at best."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    used = weight > 0
    x, label, weight = x[used], label[used], weight[used]
    classifier = HistGradientBoostingClassifier(
        learning_rate=0.1,
        max_iter=iterations,
        max_leaf_nodes=leaves,
        max_bins=32 if len(x) < 50_000 else 128,
        min_samples_leaf=max(20, len(x) // 200),
        l2_regularization=1.0,
        early_stopping=len(x) >= 500,
        validation_fraction=0.2,
        n_iter_no_change=8,
        random_state=seed,
    )
    return classifier.fit(x, label, sample_weight=weight * (len(weight) / weight.sum()))


class TreeEnsemble(nn.Module, Recorded):
    """log odds(x) = offset + sum over trees of the value of the leaf that x (N, C) falls into.

    Arguments: numbers of trees, of nodes (the largest tree), and of levels. Fill it with `TreeEnsemble.of`.
    """

    value: Tensor
    threshold: Tensor
    feature: Tensor
    child: Tensor
    offset: Tensor

    def __init__(self, trees: int, nodes: int, depth: int) -> None:
        super().__init__()
        self.depth = depth
        self.register_buffer("value", torch.zeros(trees, nodes, dtype=torch.float64))
        self.register_buffer("threshold", torch.zeros(trees, nodes, dtype=torch.float64))
        self.register_buffer("feature", torch.zeros(trees, nodes, dtype=torch.int64))
        # a leaf is its own child, so that every row walks the same number of steps
        self.register_buffer("child", torch.arange(nodes).repeat(2, trees, 1))
        self.register_buffer("offset", torch.zeros((), dtype=torch.float64))

    @classmethod
    def of(cls, *classifiers: Any) -> TreeEnsemble:
        """The mean log odds of fitted scikit-learn `HistGradientBoostingClassifier`s."""
        tables = [predictor[0].nodes for classifier in classifiers for predictor in classifier._predictors]
        nodes = max((len(table) for table in tables), default=1)
        depth = max((int(table["depth"].max()) for table in tables), default=0)
        ensemble = cls(len(tables), nodes, depth)
        for tree, table in enumerate(tables):
            leaf, here = table["is_leaf"].astype(bool), np.arange(len(table))
            ensemble.value[tree, : len(table)] = torch.from_numpy(np.where(leaf, table["value"], 0.0) / len(classifiers))
            ensemble.threshold[tree, : len(table)] = torch.from_numpy(np.where(leaf, 0.0, table["num_threshold"]))
            ensemble.feature[tree, : len(table)] = torch.from_numpy(np.where(leaf, 0, table["feature_idx"]).astype(np.int64))
            for side, name in enumerate(("left", "right")):
                ensemble.child[side, tree, : len(table)] = torch.from_numpy(np.where(leaf, here, table[name]).astype(np.int64))
        offsets = [float(classifier._baseline_prediction.ravel()[0]) for classifier in classifiers]
        ensemble.offset.fill_(float(np.mean(offsets)))
        return ensemble

    def forward(self, x: NDArray[np.float64]) -> NDArray[np.float64]:
        """log odds (N,) of rows x (N, C)."""
        total = np.full(len(x), float(self.offset))
        value, threshold, feature = self.value.numpy(), self.threshold.numpy(), self.feature.numpy()
        child, rows = self.child.numpy(), np.arange(len(x))
        for tree in range(len(value)):
            node = np.zeros(len(x), np.int64)
            for _ in range(self.depth):
                right = x[rows, feature[tree, node]] > threshold[tree, node]
                node = np.where(right, child[1, tree, node], child[0, tree, node])
            total += value[tree, node]
        return total
