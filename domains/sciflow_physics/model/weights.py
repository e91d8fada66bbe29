"""Event weights: signed ones made positive by learning, spectra of the conditions matched by a density ratio."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_physics.model.sample import Sample, fold_of
from sciflow_physics.model.trees import TreeEnsemble, boosted_trees

__all__ = ["WeightReport", "effective_sample_size", "matching_weights", "positive_weights"]

_CROSS_FITS = 3
_LARGEST_RATIO = 20.0
_BINS, _SWEEPS = 16, 8


def effective_sample_size(weight: NDArray) -> float:
    r"""(sum w)^2 / sum w^2: how many events of weight 1 carry the same statistical power.

    >>> effective_sample_size(np.array([1.0, 1.0, 1.0, -1.0]))
    1.0
    """
    square = float((weight**2).sum())
    return float(weight.sum()) ** 2 / square if square > 0 else 0.0


@dataclass(frozen=True)
class WeightReport:
    """What became of the weights of one sample.

    Attributes: rows; fraction of rows with a negative weight; effective sample size before and after; fraction of
    rows where the estimate was clipped and, per column, the range of those rows.
    """

    rows: int
    negative_fraction: float
    effective_before: float
    effective_after: float
    clipped_fraction: float
    clipped_region: dict[str, tuple[float, float]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Plain numbers for a report."""
        return asdict(self)


def positive_weights(
    sample: Sample, categories: int = 0, *, names: tuple[str, ...] = (), bootstrap: NDArray | None = None, seed: int = 0
) -> tuple[NDArray[np.float64], WeightReport]:
    r"""Positive weights with the same expectation at every x as signed ones.

    With p(x) the probability, among events weighted by \|w\|, that the weight is positive,

        E[w | x] = E[\|w\| | x] (2 p(x) - 1),    so    w'_i = \|w_i\| max(0, 2 p(x_i) - 1)

    has the density of the signed sample wherever that is not negative. p is a boosted classifier of all features and
    conditions, cross-fitted by event; then w' is scaled to the signed total in bins of every column, per category. A
    likelihood with w' is bounded, with w it is not; with \|w\| it would learn the sum of what should be subtracted. Where
    2 p - 1 < 0 the estimate is clipped: reported, with the region.

    `bootstrap` (N,) multiplies the weights. Raises `UserError` if the signed total is not positive.

    Source: A Neural Resampler for Monte Carlo Reweighting with Preserved Uncertainties, Nachman and Thaler 2020,
    arXiv 2007.11586.
    """
    signed = sample.weight * (1.0 if bootstrap is None else bootstrap)
    if not signed.sum() > 0:
        raise UserError(f"the weights of {len(signed)} rows sum to {signed.sum():.4g}: a density needs a positive total")
    negative = sample.weight < 0
    if not negative.any():
        size = effective_sample_size(signed)
        return signed, WeightReport(len(signed), 0.0, size, size, 0.0)
    x = sample.covariates(categories, features=True)
    _, odds = _cross_fitted(x, ~negative, np.abs(signed), sample.event, seed)
    excess = np.tanh(odds / 2)  # 2 p - 1
    weight = np.abs(signed) * np.maximum(excess, 0.0)
    if not weight.sum() > 0:
        raise UserError("negative weights prevail everywhere: there is no positive density to learn; check the sign convention")
    weight = _raked(sample, weight, signed)
    clipped = excess < 0
    report = WeightReport(
        len(weight), float(negative.mean()), effective_sample_size(signed), effective_sample_size(weight),
        float(clipped.mean()), _region(sample, clipped, names),
    )  # fmt: skip
    return weight, report


def matching_weights(
    sim: Sample,
    data: Sample,
    sim_weight: NDArray,
    data_weight: NDArray,
    categories: int = 0,
    *,
    names: tuple[str, ...] = (),
    seed: int = 0,
    ratio: TreeEnsemble | None = None,
) -> tuple[NDArray[np.float64], TreeEnsemble, WeightReport]:
    r"""Weights that give the simulation the conditions' spectrum of the data, r(c) = p_data(c) / p_sim(c).

    r comes from a boosted classifier of simulation against data in the conditions alone, cross-fitted by event, and is
    clipped to [1/20, 20]; the conditions themselves are never altered. Returns the weights of the simulation, the
    classifier for rows outside the fit (the mean log odds of the cross-fits), and a report.
    """
    covariates = [part.covariates(categories, features=False) for part in (sim, data)]
    if covariates[0].shape[1] == 0:
        report = WeightReport(len(sim_weight), 0.0, *(effective_sample_size(sim_weight),) * 2, 0.0)
        return sim_weight, TreeEnsemble(0, 1, 0), report
    label = np.repeat([False, True], [len(sim.event), len(data.event)])
    weight = np.concatenate([sim_weight / sim_weight.sum(), data_weight / data_weight.sum()])
    if ratio is None:
        # an event number of the data may occur in the simulation too, by accident: sharing a fold with it does no harm
        event = np.concatenate([sim.event, data.event])
        ratio, odds = _cross_fitted(np.concatenate(covariates), label, weight, event, seed)
        odds = odds[: len(sim.event)]
    else:
        odds = ratio(covariates[0])
    clipped = np.abs(odds) > np.log(_LARGEST_RATIO)
    matched = sim_weight * ratio_of(odds)
    report = WeightReport(
        len(matched), 0.0, effective_sample_size(sim_weight), effective_sample_size(matched),
        float(clipped.mean()), _region(sim, clipped, names, features=False),
    )  # fmt: skip
    return matched * (sim_weight.sum() / matched.sum()), ratio, report


def ratio_of(odds: NDArray[np.float64]) -> NDArray[np.float64]:
    """exp(log odds), clipped to [1/20, 20]."""
    return np.exp(np.clip(odds, -np.log(_LARGEST_RATIO), np.log(_LARGEST_RATIO)))


def _cross_fitted(
    x: NDArray, label: NDArray[np.bool_], weight: NDArray, event: NDArray[np.int64], seed: int
) -> tuple[TreeEnsemble, NDArray[np.float64]]:
    """The mean classifier, and log odds of each row from a classifier that has not seen its event."""
    part = fold_of(event, _CROSS_FITS, seed + 7919)
    odds, classifiers = np.empty(len(x)), []
    for number in range(_CROSS_FITS):
        held = part == number
        if len(np.unique(label[~held & (weight > 0)])) < 2:
            events = len(np.unique(event))
            raise UserError(f"too few events ({events}) to learn a weight: every class needs some in each of 3 parts")
        classifier = boosted_trees(x[~held], label[~held], weight[~held], seed=seed)
        odds[held] = classifier.decision_function(x[held]) if held.any() else 0.0
        classifiers.append(classifier)
    return TreeEnsemble.of(*classifiers), odds


def _raked(sample: Sample, weight: NDArray, signed: NDArray) -> NDArray[np.float64]:
    """Scale positive weights until every bin of every column, per category, has the total of the signed ones.

    Cutting a noisy estimate off at 0 makes it too large where little is left after subtraction; iterative proportional
    fitting (Deming and Stephan, Ann. Math. Stat. 11 (1940) 427) to the signed margins takes that back. A bin without a
    positive total keeps a twentieth of its weight in each sweep.
    """
    table = np.concatenate([sample.x, sample.conditions], axis=1)
    groups = []
    for code in np.unique(sample.category):
        rows = np.flatnonzero(sample.category == code)
        bins = int(np.clip(len(rows) // 100, 1, _BINS))
        for column in table[rows].T:
            edges = np.unique(np.quantile(column, np.linspace(0, 1, bins + 1)[1:-1]))
            groups.append((rows, np.searchsorted(edges, column, side="right"), len(edges) + 1))
    weight = weight.copy()
    wanted = [np.bincount(place, signed[rows], size) for rows, place, size in groups]
    for _ in range(_SWEEPS):
        for (rows, place, size), target in zip(groups, wanted, strict=True):
            got = np.bincount(place, weight[rows], size)
            factor = np.where(got > 0, target / np.where(got > 0, got, 1.0), 1.0)
            weight[rows] *= np.clip(factor, 0.05, 20.0)[place]
    return weight


def _region(
    sample: Sample, rows: NDArray[np.bool_], names: tuple[str, ...], *, features: bool = True
) -> dict[str, tuple[float, float]]:
    if not rows.any():
        return {}
    table = np.concatenate([sample.x, sample.conditions], axis=1) if features else sample.conditions
    names = names or tuple(f"column {j}" for j in range(table.shape[1]))
    if not features:
        names = names[-table.shape[1] :]
    return {name: (float(table[rows, j].min()), float(table[rows, j].max())) for j, name in enumerate(names)}
