"""Everything the closure report states, as numbers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.strict_json import plain
from sciflow_physics.metrics import (
    CrossFitted,
    MarginalComparison,
    Sample,
    compare_marginals,
    correlation,
    cross_fit,
    data_floor,
    null_marginals,
)
from sciflow_physics.report.progress import steps

__all__ = ["Marginal", "Measurements", "measure", "samples_of"]

# effective events below which a resampling may be left with no positive weight at all (5 standard deviations)
_FEWEST = 25.0


@dataclass(frozen=True)
class Marginal:
    """One feature in one category: before and after against data, and the 95 % points of the null."""

    feature: str
    category: str
    unit: str
    before: MarginalComparison
    after: MarginalComparison
    null_ks: float
    null_point_mass: float | None = None


@dataclass(frozen=True)
class Measurements:
    """The numbers of a closure report; `to_dict` is plain JSON."""

    auc: dict[str, tuple[float, float]]  # comparison -> value, error
    auc_excess: tuple[float, float]  # after minus conditions only, with the error of the difference
    marginals: list[Marginal]
    correlations: dict[str, dict[str, Any]]  # category -> names, before, after (differences to data), data
    rows: dict[str, int]
    events: dict[str, int]
    changed: dict[str, bool]  # conditions, auxiliaries and bookkeeping columns: not bit-identical to the input
    non_finite: dict[str, int]
    not_compared: list[tuple[str, str]]  # (feature, category) that a sample has, with too few events in one of the two
    out_of_support: float | None
    effective_rows: dict[str, float]  # (sum w)^2 / sum w^2; for the simulation with the kinematic weights
    negative_fraction: dict[str, float]
    settings: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries and lists of numbers and strings."""
        return plain(asdict(self), "measurements")


def samples_of(before: xr.Dataset, after: xr.Dataset, data: xr.Dataset, roles: Any) -> tuple[Sample, Sample, Sample]:
    """Simulation before and after the correction, both with the kinematic weights of `after`, and data.

    Raises `UserError` if a corrected column is missing or the row counts differ.
    """
    if before.sizes["row"] != after.sizes["row"]:
        raise UserError(
            f"the corrected sample has {after.sizes['row']} rows, the simulation {before.sizes['row']}: "
            "give the file that `apply` made from this simulation"
        )
    missing = [f"{name}_corr" for name in roles.feature_names if f"{name}_corr" not in after]
    if missing:
        raise UserError(f"the corrected sample lacks the columns {', '.join(missing)}: run `apply` first")
    weight = before["weight"].values.astype(np.float64) if "weight" in before else np.ones(before.sizes["row"])
    if "weight_kinematic" in after:
        weight = weight * np.nan_to_num(after["weight_kinematic"].values.astype(np.float64), nan=0.0, posinf=0.0)
    # what is not finite is counted by the test `non_finite`; everywhere else it takes no part
    columns = {f"{name}_corr": after[f"{name}_corr"].values for name in roles.feature_names}
    corrected = before.assign(
        {name: ("row", np.where(np.isfinite(values), values, np.nan)) for name, values in columns.items()}
    )
    return (
        Sample.from_dataset(before, roles, weight=weight),
        Sample.from_dataset(corrected, roles, corrected=True, weight=weight),
        Sample.from_dataset(data, roles),
    )


def measure(
    before: xr.Dataset,
    after: xr.Dataset,
    data: xr.Dataset,
    roles: Any,
    *,
    seed: int = 0,
    bootstrap: int = 200,
    replicates: int = 400,
    folds: int = 5,
    floor_splits: int = 2,
    trees: dict[str, Any] | None = None,
    progress: bool = True,
) -> Measurements:
    """Compare simulation before and after the correction with data.

    Arguments:
        before, after, data: rows; `after` has a column `<feature>_corr` for each feature and may have
            `weight_kinematic` (multiplies the simulation's weight in both comparisons), `out_of_support` and
            `<feature>_corr_up`, `<feature>_corr_down`.
        bootstrap: resamplings of events for errors; replicates: of the data-vs-data null.
        folds, floor_splits, trees: see `sciflow_physics.metrics.cross_fit` and `data_floor`.

    A feature in a category that one of the samples lacks, or has in less than 25 effective events, is not compared but
    listed in `not_compared`.

    Raises `UserError` if columns are missing, a sample's weights do not sum to more than zero, or there are too few events.
    """
    sim, corrected, real = samples_of(before, after, data, roles)
    for name, sample in (("simulation", sim), ("data", real)):
        if not sample.weight.sum() > 0:
            raise UserError(f"the weights of the {name} ({len(sample.weight)} rows) sum to {sample.weight.sum():g}")
    # the data are halved for the comparison with themselves
    for name, sample, parts in (("simulation", sim, folds), ("data", real, 2 * folds)):
        worth = sample.effective_events()
        if worth < _FEWEST * parts:
            raise UserError(
                f"the {name} has {sample.events} events, worth {worth:.0f} of equal weight: {folds} folds need at least "
                f"{_FEWEST * parts:.0f}"
            )
    options: dict[str, Any] = {"folds": folds, "seed": seed, "bootstrap": bootstrap, "trees": trees}
    features, conditions = roles.feature_names, roles.condition_names
    every = [*features, *conditions]
    categories = sorted(set(real.category) & set(sim.category))
    everywhere = sorted(set(real.category) | set(sim.category))
    wanted = [(n, c) for n in features for c in everywhere if any(s.having(n, c).any() for s in (sim, real))]
    pairs = [(name, category) for name, category in wanted if category in categories and _shared(sim, real, name, category)]
    found: dict[str, CrossFitted] = {}
    comparisons = {
        "before": (sim, every),
        "after": (corrected, every),
        "conditions only": (sim, conditions),
    }
    marginals = []
    with steps("closure", len(comparisons) + 1 + len(pairs), progress) as advance:
        for label, (sample, names) in comparisons.items():
            found[label] = cross_fit(sample, real, names, **options)
            advance(label)
        found["data vs data"] = data_floor(real, every, splits=floor_splits, **options)
        advance("data vs data")
        for name, category in pairs:
            marginals.append(_marginal(sim, corrected, real, roles, name, category, bootstrap, replicates, seed))
            advance(f"{name} {category}")
    excess = found["after"].replicates - found["conditions only"].replicates
    return Measurements(
        auc={label: (result.auc, result.error) for label, result in found.items()},
        auc_excess=(found["after"].auc - found["conditions only"].auc, float(excess.std(ddof=1))),
        marginals=marginals,
        correlations={name: _correlations(sim, corrected, real, every, name) for name in categories},
        rows={"simulation": len(sim.weight), "data": len(real.weight)},
        events={"simulation": sim.events, "data": real.events},
        changed=_changed(before, after, roles),
        non_finite=_non_finite(before, after, roles),
        not_compared=[pair for pair in wanted if pair not in pairs],
        out_of_support=float(np.mean(after["out_of_support"].values)) if "out_of_support" in after else None,
        effective_rows={"simulation": _effective(sim.weight), "data": _effective(real.weight)},
        negative_fraction={"simulation": float(np.mean(sim.weight < 0)), "data": float(np.mean(real.weight < 0))},
        settings={"seed": seed, "bootstrap": bootstrap, "replicates": replicates, "folds": folds, "floor_splits": floor_splits},
    )


def _marginal(
    sim: Sample,
    corrected: Sample,
    real: Sample,
    roles: Any,
    name: str,
    category: str,
    bootstrap: int,
    replicates: int,
    seed: int,
) -> Marginal:
    role = roles.features[name]
    options: dict[str, Any] = {"point_mass": role.point_mass, "seed": seed}
    null = null_marginals(
        real,
        name,
        category,
        events=sim.events,
        weight=sim.weight[sim.having(name, category)],
        replicates=replicates,
        **options,
    )
    return Marginal(
        name,
        category,
        role.unit,
        compare_marginals(sim, real, name, category, bootstrap=bootstrap, **options),
        compare_marginals(corrected, real, name, category, bootstrap=bootstrap, **options),
        null.ks_quantile(),
        None if role.point_mass is None else null.point_mass_quantile(),
    )


def _shared(sim: Sample, real: Sample, name: str, category: str) -> bool:
    size = [sample.effective_events(sample.having(name, category)) for sample in (sim, real)]
    # the null draws as many events as the simulation has from the data
    return min(*size, size[1] * sim.events / real.events) >= _FEWEST


def _correlations(sim: Sample, corrected: Sample, real: Sample, names: list[str], category: str) -> dict[str, Any]:
    matrices = {}
    for label, sample in (("before", sim), ("after", corrected), ("data", real)):
        rows = sample.category == category
        matrices[label] = correlation(sample.matrix(names)[rows], sample.weight[rows])
    reference = matrices.pop("data")
    differences = {label: matrix - reference for label, matrix in matrices.items()}
    largest = {f"largest_{label}": float(np.nanmax(np.abs(matrix), initial=0.0)) for label, matrix in differences.items()}
    return {"names": names, "data": reference, **differences, **largest}


def _changed(before: xr.Dataset, after: xr.Dataset, roles: Any) -> dict[str, bool]:
    names = [*roles.condition_names, *(name for name in roles.auxiliary if name in before), "event", "id", "weight"]
    names += list(roles.feature_names)  # the nominal columns stay beside the corrected ones
    return {
        name: name not in after or before[name].values.tobytes() != after[name].values.tobytes()
        for name in names
        if name in before
    }


def _non_finite(before: xr.Dataset, after: xr.Dataset, roles: Any) -> dict[str, int]:
    present = np.asarray(roles.mask(before), dtype=bool)
    counts = {}
    for index, name in enumerate(roles.feature_names):
        for column in (f"{name}_corr", f"{name}_corr_up", f"{name}_corr_down"):
            if column in after:
                counts[column] = int((~np.isfinite(after[column].values[present[:, index]])).sum())
    if "weight_kinematic" in after:
        counts["weight_kinematic"] = int((~np.isfinite(after["weight_kinematic"].values)).sum())
    return counts


def _effective(weight: NDArray[np.float64]) -> float:
    return float(weight.sum() ** 2 / (weight**2).sum())
