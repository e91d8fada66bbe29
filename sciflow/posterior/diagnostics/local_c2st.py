"""Local classifier two-sample test: whether draws for one observation are the posterior's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.c2st import scikit_learn
from sciflow.posterior.diagnostics.inputs import finite, flattened, simulations

__all__ = ["LocalC2ST"]

_SOURCE = "L-C2ST: Local Diagnostics for Posterior Approximations, Linhart et al. 2023, arXiv:2306.03580"


class LocalC2ST:
    r"""Classifiers of (theta, y) ~ p(theta, y) against (theta', y) with theta' ~ q(theta | y), read off at one observation.

    With d(theta, y) the probability of the second class, the statistic at an observation is the mean over theta ~ q(. | y)
    of (d - 1/2)^2. It is compared with that of classifiers trained after theta and theta' were exchanged at random within
    their rows, which leaves everything as it is if q is the posterior: p = (1 + #{null >= observed}) / (1 + permutations).

    Trained once, it serves any number of observations; it costs 1 + permutations trainings.

    Arguments:
        theta, y: simulations (n, *event), (n, *data).
        draws: one draw of q(theta | y_i) for each row (n, *event).
        permutations: of the null; p-values are not below 1 / (1 + permutations).
        classifier: seed -> object with `fit` and `predict_proba`; by default scikit-learn's network of two layers of 10 (d + m)
            units (at most 200) with early stopping.

    Source: L-C2ST: Local Diagnostics for Posterior Approximations in Simulation-Based Inference, Linhart, Gramfort and
    Rodrigues 2023, arXiv:2306.03580.
    """

    def __init__(
        self, theta: Tensor, draws: Tensor, y: Tensor, *, permutations: int = 100,
        classifier: Callable[[int], Any] | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        found = simulations(theta, torch.as_tensor(draws).unsqueeze(1), y)
        assert found.y is not None
        self.permutations, self.event_shape = integer("permutations", permutations, 1, 2**31), found.theta.shape[1:]
        a, b, data = (flattened(entry).cpu().numpy() for entry in (found.theta, found.draws[:, 0], found.y))
        self.data_shape, self.simulations = found.y.shape[1:], len(a)
        both, scale = np.concatenate([a, b]), lambda x: np.where(x.std(0) > 0, x.std(0), 1.0)
        self.centres = (both.mean(0), scale(both)), (data.mean(0), scale(data))
        width = min(10 * (a.shape[1] + data.shape[1]), 200)
        make = classifier or (lambda number: _network(width, number))
        generator = np.random.default_rng(seed)
        self.classifiers = []
        for number in range(self.permutations + 1):
            swap = generator.random(len(a)) < 0.5 if number else np.zeros(len(a), dtype=bool)
            first, second = np.where(swap[:, None], b, a), np.where(swap[:, None], a, b)
            rows = np.concatenate([self._rows(first, data), self._rows(second, data)])
            target = np.repeat([0, 1], len(a))
            order = generator.permutation(len(rows))
            self.classifiers.append(make(seed + number).fit(rows[order], target[order]))

    def statistics(self, observation: Tensor, draws: Tensor) -> np.ndarray:
        """(1 + permutations,): the statistic at the observation, then those of the null."""
        observation = observation.unsqueeze(0) if observation.dim() == 0 else observation
        draws = draws.unsqueeze(1) if draws.dim() == 1 else draws
        if observation.shape != self.data_shape or draws.shape[1:] != self.event_shape:
            raise UserError(
                f"observation {tuple(observation.shape)} and draws {tuple(draws.shape)}: the test was trained for "
                f"{tuple(self.data_shape)} and (L, {', '.join(map(str, self.event_shape))})"
            )
        finite("draws", draws)
        data = flattened(observation.unsqueeze(0))[0].cpu().numpy()
        rows = self._rows(flattened(draws).cpu().numpy(), np.tile(data, (len(draws), 1)))
        return np.array([np.mean((entry.predict_proba(rows)[:, 1] - 0.5) ** 2) for entry in self.classifiers])

    def test(self, observation: Tensor, draws: Tensor, *, level: float = 0.01) -> Test:
        """The test at one observation, for draws (L, *event) of q(theta | observation).

        Raises `UserError` if the permutations are too few for the level.
        """
        if 1 / (1 + self.permutations) >= level:
            raise UserError(
                f"{self.permutations} permutations cannot reach the level {level:g}: take {round(1 / level)} or more"
            )
        found = self.statistics(torch.as_tensor(observation), torch.as_tensor(draws))
        p = (1 + int((found[1:] >= found[0]).sum())) / len(found)
        text = (
            f"permutation p-value at this observation: statistic {found[0]:.3g}, null {found[1:].mean():.3g}; "
            f"{self.simulations} simulations, {self.permutations} permutations, {len(draws)} draws"
        )
        return Test("local C2ST", p, level, ">=", description=text, reference=_SOURCE)

    def _rows(self, theta: np.ndarray, data: np.ndarray) -> np.ndarray:
        (a, b), (c, d) = self.centres
        return np.concatenate([(theta - a) / b, (data - c) / d], 1)


def _network(width: int, seed: int) -> Any:
    return scikit_learn("neural_network").MLPClassifier(
        hidden_layer_sizes=(width, width), max_iter=1000, early_stopping=True, n_iter_no_change=20, random_state=seed
    )
