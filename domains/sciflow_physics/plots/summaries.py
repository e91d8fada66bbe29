"""The report at a glance: areas under the curve, distances against their null, correlation differences."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from sciflow_physics.plots.style import PALETTE, figure, style

__all__ = ["auc_figure", "correlation_figure", "distance_figure"]

_COLOURS = {**PALETTE, "data vs data": PALETTE["floor"]}


def auc_figure(auc: Mapping[str, tuple[float, float]]) -> Figure:
    """AUC +- error of each comparison; 0.5 means that trees see no difference."""
    with style():
        drawing = figure(5.0, 0.9 + 0.32 * len(auc))
        ax = drawing.subplots()
        for row, (name, (value, error)) in enumerate(auc.items()):
            ax.errorbar(
                value, row, xerr=error, color=_COLOURS.get(name, "#000000"), marker="o", ms=5, capsize=2.5, lw=0, elinewidth=1.2
            )
            ax.annotate(
                f"{value:.3f} $\\pm$ {error:.3f}", (1.02, row), xycoords=("axes fraction", "data"), va="center", fontsize=8
            )
        ax.set_yticks(range(len(auc)), [name.capitalize() for name in auc])
        ax.set_ylim(len(auc) - 0.4, -0.6)
        ax.axvline(0.5, color="black", lw=0.8, ls=":")
        low, high = min(v - 2 * e for v, e in auc.values()), max(v + 2 * e for v, e in auc.values())
        ax.set_xlim(min(0.48, low), max(0.62, high + 0.01))
        ax.tick_params(axis="y", length=0)
        ax.set_xlabel("Area under the ROC curve, held-out events")
    return drawing


def distance_figure(panels: Sequence[tuple[str, Sequence[dict[str, Any]]]], quantity: str) -> Figure:
    """One column per panel: before and after as points, the 95 % point of the data-vs-data null as a bar.

    Each row is {"name", "before": (value, error), "after": (value, error), "null": value, "threshold": value}.
    """
    with style():
        rows = max(len(entries) for _, entries in panels)
        drawing = figure(0.9 + 3.1 * len(panels), 1.1 + 0.36 * rows)
        axes = drawing.subplots(1, len(panels), sharey=False, squeeze=False)[0]
        for ax, (title, entries) in zip(axes, panels, strict=True):
            for row, entry in enumerate(entries):
                ax.barh(
                    row,
                    entry["null"],
                    height=0.7,
                    color="#999999",
                    alpha=0.35,
                    lw=0,
                    label="95 % of data vs data" if not row else None,
                )
                ax.plot(
                    [entry["threshold"]] * 2,
                    [row - 0.35, row + 0.35],
                    color="black",
                    lw=1.0,
                    label="Limit" if not row else None,
                )
                for name, marker in (("before", "s"), ("after", "D")):
                    value, error = entry[name]
                    ax.errorbar(
                        value,
                        row,
                        xerr=error,
                        color=PALETTE[name],
                        marker=marker,
                        ms=4,
                        lw=0,
                        elinewidth=1.0,
                        label=name.capitalize() if not row else None,
                    )
            ax.set_yticks(range(len(entries)), [entry["name"] for entry in entries])
            ax.set_ylim(len(entries) - 0.5, -0.5)
            ax.set_xlim(left=0)
            ax.tick_params(axis="y", length=0)
            ax.set_title(title)
            ax.set_xlabel(quantity)
        handles, names = axes[0].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside upper center", ncols=len(names))
    return drawing


def correlation_figure(panels: Sequence[tuple[str, Any]], names: Sequence[str]) -> Figure:
    """Differences of correlation coefficients to data in percent: lower triangles on one colour scale."""
    with style():
        side = 1.1 + 0.34 * len(names)
        drawing = figure(1.0 + (side + 0.2) * len(panels), side + 0.75)
        axes = drawing.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        matrices = [100 * np.asarray(matrix, dtype=float) for _, matrix in panels]
        limit = max(5.0, max(float(np.nanmax(np.abs(matrix), initial=0.0)) for matrix in matrices))
        upper = np.triu(np.ones((len(names), len(names)), dtype=bool))
        lines, columns = names[1:], names[:-1]  # the diagonal carries nothing
        for ax, (title, _), matrix in zip(axes, panels, matrices, strict=True):
            shown = np.where(upper, np.nan, matrix)[1:, :-1]
            image = ax.imshow(shown, cmap="RdBu_r", vmin=-limit, vmax=limit)
            for i, j in zip(*np.nonzero(np.isfinite(shown)), strict=True):
                shade = "white" if abs(shown[i, j]) > 0.6 * limit else "black"
                ax.text(
                    j,
                    i,
                    f"{shown[i, j]:+.0f}".replace("-0", "0").replace("+0", "0"),
                    ha="center",
                    va="center",
                    fontsize=7,
                    color=shade,
                )
            ax.set_xticks(range(len(columns)), columns, rotation=60, ha="right", rotation_mode="anchor")
            ax.set_yticks(range(len(lines)), lines)
            ax.tick_params(length=0)
            for spine in ax.spines.values():
                spine.set_visible(False)
            ax.set_title(title)
        drawing.colorbar(image, ax=axes, shrink=0.8, label=r"$\rho_{sim} - \rho_{data}$ [%]")
    return drawing
