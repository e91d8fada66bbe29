"""The figures of a closure report, by name."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sciflow_physics.metrics import Sample, profile
from sciflow_physics.plots import (
    Drawn,
    auc_figure,
    correlation_figure,
    distance_figure,
    distribution_figure,
    label,
    profile_figure,
)
from sciflow_physics.report.measure import Measurements, samples_of

__all__ = ["figures"]


def figures(
    measurements: Measurements, before: xr.Dataset, after: xr.Dataset, data: xr.Dataset, roles: Any, *, margin: float = 0.01
) -> Iterator[tuple[str, str, Figure]]:
    """(name, caption, figure) one after the other, so that only one is in memory."""
    sim, corrected, real = samples_of(before, after, data, roles)
    categories = list(measurements.correlations)
    yield "auc", "Classifier two-sample test", auc_figure(measurements.auc)
    yield from _distances(measurements, categories, margin)
    for name, role in roles.features.items():
        panels = [_drawn(name, category, sim, corrected, real, after) for category in _with(measurements, name, categories)]
        if panels:
            drawing = distribution_figure(
                panels, name, unit=role.unit, logarithmic=role.transform == "log", point_mass=role.point_mass
            )
            yield f"feature_{name}", f"{name}: data, simulation before and after the correction", drawing
    for name, role in roles.auxiliary.items():
        if name in sim.columns and name in real.columns:
            panels = [_drawn(name, category, sim, None, real, after) for category in categories]
            drawing = distribution_figure(panels, name, unit=role.unit)
            yield f"auxiliary_{name}", f"{name}: not trained on, left as it is", drawing
    for category in categories:
        found = measurements.correlations[category]
        matrices = [(f"{category}: {when}", found[when]) for when in ("before", "after")]
        caption = f"Correlation coefficients minus those of data, {category}"
        yield f"correlation_{category}", caption, correlation_figure(matrices, found["names"])
    for name, role in roles.features.items():
        for condition, other in roles.conditions.items():
            curves = [
                (category, _profiles(name, condition, category, sim, corrected, real))
                for category in _with(measurements, name, categories)
            ]
            if curves:
                caption = f"Mean {name} in bins of {condition}"
                drawing = profile_figure(
                    curves, label(name, role.unit), label(condition, other.unit), logarithmic=other.transform == "log"
                )
                yield f"profile_{name}_{condition}", caption, drawing


def _distances(measurements: Measurements, categories: list[str], margin: float) -> Iterator[tuple[str, str, Figure]]:
    ks, masses = [], []
    for category in categories:
        entries = [entry for entry in measurements.marginals if entry.category == category]
        rows = [
            {
                "name": entry.feature,
                "before": (entry.before.ks, entry.before.ks_error),
                "after": (entry.after.ks, entry.after.ks_error),
                "null": entry.null_ks,
                "threshold": entry.null_ks + margin,
            }
            for entry in entries
        ]
        ks.append((category, rows))
        rows = []
        for entry in entries:
            if entry.null_point_mass is None:
                continue
            null = entry.null_point_mass
            row: dict[str, Any] = {"name": entry.feature, "null": null, "threshold": null + margin}
            for when, found in (("before", entry.before), ("after", entry.after)):
                (first, second), (a, b) = found.point_mass, found.point_mass_error  # type: ignore[misc]
                row[when] = (abs(first - second), float(np.hypot(a, b)))
            rows.append(row)
        masses.append((category, rows))
    ks, masses = ([(category, rows) for category, rows in entries if rows] for entries in (ks, masses))
    if ks:
        yield "ks", "Kolmogorov-Smirnov distances to data", distance_figure(ks, "Weighted KS distance")
    if masses:
        drawing = distance_figure(masses, r"$|P_{sim} - P_{data}|$ of the point mass")
        yield "point_mass", "Probability of the point mass, difference to data", drawing


def _with(measurements: Measurements, name: str, categories: list[str]) -> list[str]:
    present = {(entry.feature, entry.category) for entry in measurements.marginals}
    return [category for category in categories if (name, category) in present]


def _drawn(name: str, category: str, sim: Sample, corrected: Sample | None, real: Sample, after: xr.Dataset) -> Drawn:
    rows = (sim.category == category) & ~np.isnan(sim.columns[name])
    other = (real.category == category) & ~np.isnan(real.columns[name])

    def variation(suffix: str) -> NDArray[np.float64] | None:
        column = f"{name}_corr_{suffix}"
        return after[column].values[rows] if corrected is not None and column in after else None

    return Drawn(
        category,
        real.columns[name][other],
        real.weight[other],
        sim.columns[name][rows],
        sim.weight[rows],
        None if corrected is None else corrected.columns[name][rows],
        variation("up"),
        variation("down"),
    )


def _profiles(name: str, condition: str, category: str, sim: Sample, corrected: Sample, real: Sample) -> dict[str, Any]:
    rows = {id(sample): (sample.category == category) for sample in (sim, corrected, real)}
    edges = np.unique(np.quantile(real.columns[condition][rows[id(real)]], np.linspace(0.005, 0.985, 9)))
    if len(edges) < 2:
        edges = np.array([edges[0] - 0.5, edges[0] + 0.5])
    curves = {}
    for when, sample in (("data", real), ("before", sim), ("after", corrected)):
        chosen = rows[id(sample)]
        curves[when] = profile(
            sample.columns[name][chosen], sample.columns[condition][chosen], edges, sample.weight[chosen], sample.event[chosen]
        )
    return curves
