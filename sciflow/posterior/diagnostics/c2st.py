"""Classifier two-sample test, as the benchmark of simulation-based inference defines it."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import finite, flattened

__all__ = ["c2st", "c2st_test", "scikit_learn"]

_SOURCE = "Benchmarking Simulation-Based Inference, Lueckmann et al. 2021, arXiv:2101.04653"


def scikit_learn(module: str) -> Any:
    """A module of scikit-learn, which is an optional dependency. Raises `UserError` if it is not there."""
    from importlib import import_module

    try:
        return import_module(f"sklearn.{module}")
    except ImportError as error:
        raise UserError(f"scikit-learn cannot be imported ({error}); install it: pip install 'sciflow[diagnostics]'") from error


def c2st(reference: Tensor, draws: Tensor, *, seed: int = 1, folds: int = 5) -> float:
    """Accuracy of a classifier that tells draws from reference draws: 0.5 if it cannot, 1 if it always can.

    Both are z-scored by the reference's mean and standard deviation; a network with two layers of 10 d units (relu, Adam)
    is scored by 5-fold cross-validation. It is not symmetric and grows with the number of draws: state it, and compare
    figures at equal numbers only.

    Arguments:
        reference, draws: (N, *event) each, of equal length.

    Raises `UserError` for unequal shapes, values that are not finite, or without scikit-learn.

    Source: Benchmarking Simulation-Based Inference, Lueckmann et al. 2021, arXiv:2101.04653; Revisiting Classifier
    Two-Sample Tests, Lopez-Paz and Oquab 2017, arXiv:1610.06545.
    """
    if reference.shape != draws.shape or len(reference) < 2 * folds:
        raise UserError(
            f"C2ST of {tuple(reference.shape)} against {tuple(draws.shape)} draws: give equal shapes of >= {2 * folds} rows"
        )
    finite("reference draws", reference)
    finite("draws", draws)
    networks, selection = scikit_learn("neural_network"), scikit_learn("model_selection")
    x, y = (flattened(entry.detach()).cpu().numpy() for entry in (reference, draws))
    scale = x.std(0, ddof=1)
    scale = np.where(scale > 0, scale, 1.0)
    data = (np.concatenate([x, y]) - x.mean(0)) / scale
    target = np.concatenate([np.zeros(len(x)), np.ones(len(y))])
    width = 10 * data.shape[1]
    classifier = networks.MLPClassifier(
        activation="relu", hidden_layer_sizes=(width, width), max_iter=10_000, solver="adam", random_state=seed
    )
    shuffled = selection.KFold(n_splits=folds, shuffle=True, random_state=seed)
    return float(selection.cross_val_score(classifier, data, target, cv=shuffled, scoring="accuracy").mean())


def c2st_test(reference: Tensor, draws: Tensor, *, threshold: float = 0.55, seed: int = 1) -> Test:
    """`c2st` against reference draws as a test; its description states N."""
    text = f"classifier two-sample test, {len(draws)} against {len(reference)} draws; 0.5 is ideal"
    return Test("C2ST", c2st(reference, draws, seed=seed), threshold, "<=", description=text, reference=_SOURCE)
