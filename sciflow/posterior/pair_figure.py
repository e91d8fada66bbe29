"""Draws of a few parameters: histograms on the diagonal, pairs below it, units on the axes."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import numpy as np
import xarray

__all__ = ["joined_offsets", "labelled", "pair_figure"]

_INK, _MEAN = "#0072B2", "#D55E00"  # a pair that colour-blind readers tell apart
_POINTS, _LONG = 1500, 16


def labelled(name: str, units: dict[str, str]) -> str:
    """The name with its unit, in two lines if it is long.

    >>> labelled("mass", {"mass": "GeV"})
    'mass [GeV]'
    """
    unit = units.get(name, "")
    joint = "\n" if len(name) + len(unit) > _LONG else " "
    return f"{name}{joint}[{unit}]" if unit else name


def pair_figure(data: xarray.Dataset, units: dict[str, str]) -> Any:
    """A matplotlib figure of the variables (chain, draw) of `data`; mean values are dashed."""
    pyplot, ticker = import_module("matplotlib.pyplot"), import_module("matplotlib.ticker")
    names = [str(name) for name in data.data_vars]
    columns = [data[name].values.ravel() for name in names]
    count = len(names)
    side = 5.0 if count == 1 else 2.0 * count + 1.0
    figure, axes = pyplot.subplots(
        count, count, figsize=(side, 0.62 * side if count == 1 else side), squeeze=False, sharex="col", layout="constrained"
    )
    step = max(1, -(-len(columns[0]) // _POINTS))
    for row in range(count):
        for column in range(count):
            axis = axes[row, column]
            if column > row:
                axis.set_axis_off()
                continue
            x = columns[column]
            label = "mean" if not row else None
            axis.axvline(x.mean(), color=_MEAN, linestyle="--", linewidth=1, label=label, zorder=3)
            if row == column:
                axis.hist(x[np.isfinite(x)], bins=min(40, max(10, int(len(x) ** 0.5))), color=_INK, alpha=0.75)
                axis.set_yticks([])  # counts per bin have no meaning worth a tick
                axis.set_ylabel("draws" if count == 1 else "")
            else:
                y = columns[row]
                axis.plot(x[::step], y[::step], ".", color=_INK, alpha=0.3, markersize=3, markeredgewidth=0, rasterized=True)
                axis.axhline(y.mean(), color=_MEAN, linestyle="--", linewidth=1, zorder=3)
                low, high = _range(y)
                axis.set_ylim(low, high)
                axis.yaxis.set_major_locator(ticker.MaxNLocator(3, prune="both"))
                if column:
                    axis.tick_params(labelleft=False)
            axis.set_xlim(*_range(x))
            axis.xaxis.set_major_locator(ticker.MaxNLocator(3 if count > 1 else 6, prune="both"))
            if row == count - 1:
                axis.set_xlabel(labelled(names[column], units))
            if not column and row:
                axis.set_ylabel(labelled(names[row], units))
    figure.legend(loc="upper right", frameon=False)
    figure.align_labels()
    joined_offsets(figure)
    return figure


def joined_offsets(figure: Any) -> None:
    """Common offsets and powers of ten go from the corners of axes, where they collide with neighbours, to the labels."""
    figure.canvas.draw()
    for axis in figure.axes:
        for side in (axis.xaxis, axis.yaxis):
            offset = side.get_major_formatter().get_offset()
            if offset and side.label.get_text():
                side.label.set_text(f"{side.label.get_text()}\n({offset})")
            if offset:
                side.offsetText.set_visible(False)


def _range(values: np.ndarray) -> tuple[float, float]:
    """The range with a margin; something where all values are the same."""
    low, high = float(values.min()), float(values.max())
    margin = 0.04 * (high - low) or max(abs(low), 1.0) * 0.05
    return low - margin, high + margin
