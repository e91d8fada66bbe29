"""A feature in data and in simulation before and after the correction, with the ratio to data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import hist
import mplhep
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from numpy.typing import NDArray

from sciflow_physics.plots.style import PALETTE, figure, label, style

__all__ = ["Drawn", "distribution_figure"]


@dataclass(frozen=True)
class Drawn:
    """What one panel shows; values without absent rows. `after` and the variations share the weight of `before`.

    `after` is None for a quantity that the correction does not touch.
    """

    title: str
    data: NDArray[np.float64]
    data_weight: NDArray[np.float64]
    before: NDArray[np.float64]
    weight: NDArray[np.float64]
    after: NDArray[np.float64] | None = None
    up: NDArray[np.float64] | None = None
    down: NDArray[np.float64] | None = None


class _Scale:
    """Display coordinates: linear or log10, with the point mass as a bin of its own left of the continuum."""

    def __init__(self, values: Sequence[NDArray[np.float64]], logarithmic: bool, point_mass: float | None, bins: int) -> None:
        pooled = np.concatenate(values)
        self.point_mass = point_mass
        continuum = pooled if point_mass is None else pooled[pooled != point_mass]
        self.logarithmic = logarithmic and bool(len(continuum)) and bool((continuum > 0).mean() > 0.9)
        if self.logarithmic:
            continuum = continuum[continuum > 0]
        shown = np.log10(continuum) if self.logarithmic else continuum
        if len(shown):
            low, high = np.quantile(shown, [0.003, 0.997])
        else:
            low, high = 0.0, 1.0
        high = high if high > low else low + 1.0
        width = (high - low) / bins
        edges = np.linspace(low, high, bins + 1)
        self.low, self.width = low, width
        self.edges = edges if point_mass is None else np.concatenate([[low - 3 * width, low - 2 * width], edges])

    def __call__(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        with np.errstate(divide="ignore", invalid="ignore"):
            shown = np.log10(np.where(values > 0, values, np.nan)) if self.logarithmic else values.astype(float)
        shown = np.where(np.isnan(shown), self.edges[0] - 1.0, shown)  # not positive on a log axis: underflow
        if self.point_mass is None:
            return shown
        # continuum below the axis belongs to the underflow, not into the bin of the point mass or the gap
        shown = np.where(shown < self.low, self.edges[0] - 1.0, shown)
        return np.where(values == self.point_mass, self.low - 2.5 * self.width, shown)

    def axis(self, ax: Any, text: str) -> None:
        """Ticks and label; on the log axis at decades, whatever the display coordinate."""
        ax.set_xlim(self.edges[0] - (0 if self.point_mass is None else self.width), self.edges[-1])
        ax.set_xlabel(text)
        ticks, names, minor = [], [], []
        if self.logarithmic:
            for power in range(int(np.floor(self.low)), int(np.ceil(self.edges[-1])) + 1):
                ticks.append(float(power))
                names.append(f"$10^{{{power}}}$")
                minor += [power + np.log10(step) for step in range(2, 10)]
            keep = [self.low <= tick <= self.edges[-1] for tick in ticks]
            if sum(keep) < 2:  # less than two decades in sight: label 2 and 5 as well
                ticks += [tick + np.log10(step) for tick in ticks for step in (2, 5)]
                names = [f"{10**tick:.3g}" for tick in ticks]
        elif self.point_mass is not None:
            ticks = [tick for tick in ax.get_xticks() if self.low <= tick <= self.edges[-1]]
            names = [f"{tick:g}" for tick in ticks]
        else:
            return
        if self.point_mass is not None:
            inside = [(tick, name) for tick, name in zip(ticks, names, strict=True) if tick >= self.low + self.width]
            ticks, names = [entry[0] for entry in inside], [entry[1] for entry in inside]
            ticks.append(self.low - 2.5 * self.width)
            names.append(f"{self.point_mass:g}")
        ax.set_xticks(ticks, names)
        ax.xaxis.set_minor_locator(FixedLocator([tick for tick in minor if tick >= self.low]) if minor else NullLocator())
        ax.set_xlim(self.edges[0] - (0 if self.point_mass is None else self.width), self.edges[-1])


def distribution_figure(
    panels: Sequence[Drawn],
    name: str,
    *,
    unit: str = "",
    logarithmic: bool = False,
    point_mass: float | None = None,
    bins: int = 30,
) -> Figure:
    """One column per panel (category): histograms with sum of squared weights, below them the ratio to data.

    The simulation is scaled to the data's sum of weights. Bands: statistical error of the corrected simulation
    (hatched) and the envelope of its variations (filled); in the ratio the data's error is at one.
    """
    with style():
        drawing = figure(0.6 + 3.3 * len(panels), 3.9)
        axes = drawing.subplots(2, len(panels), sharex="col", height_ratios=(2.6, 1), squeeze=False)
        contents = [
            _panel(top, bottom, panel, label(name, unit), logarithmic, point_mass, bins)
            for (top, bottom), panel in zip(axes.T, panels, strict=True)
        ]
        _limits(axes[0], contents)
        axes[0, 0].set_ylabel("Entries")
        axes[1, 0].set_ylabel("Sim. / data")
        handles, names = axes[0, 0].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside upper center", ncols=len(names))
    return drawing


def _panel(
    top: Any, bottom: Any, panel: Drawn, text: str, logarithmic: bool, point_mass: float | None, bins: int
) -> list[NDArray[np.float64]]:
    """Draw one panel; the contents that the upper axis has to hold."""
    scale = _Scale([panel.data, panel.before], logarithmic, point_mass, bins)
    data = _fill(scale, panel.data, panel.data_weight)
    norm = panel.data_weight.sum() / panel.weight.sum()
    weight = panel.weight * norm
    before = _fill(scale, panel.before, weight)
    after = None if panel.after is None else _fill(scale, panel.after, weight)
    shown = before if after is None else after
    colour = PALETTE["before" if after is None else "after"]
    old: dict[str, Any] = {"yerr": False, "flow": "none", "color": PALETTE["before"], "ls": "-" if after is None else "--"}
    mplhep.histplot(before, ax=top, label="Simulation" if after is None else "Before", **old)
    if after is not None:
        mplhep.histplot(after, ax=top, yerr=False, flow="none", color=PALETTE["after"], label="After")
    content, error = shown.values(), _sigma(shown)
    _band(top, scale.edges, content - error, content + error, colour, hatch="/////", name="Stat. error")
    low = high = None
    if panel.up is not None and panel.down is not None:
        variations = np.stack([content, _fill(scale, panel.up, weight).values(), _fill(scale, panel.down, weight).values()])
        low, high = variations.min(0), variations.max(0)
        _band(top, scale.edges, low, high, colour, name="Variations")
    mplhep.histplot(
        data,
        ax=top,
        histtype="errorbar",
        flow="none",
        yerr=_sigma(data),
        color=PALETTE["data"],
        markersize=4,
        elinewidth=0.9,
        label="Data",
    )
    top.set_title(panel.title)
    top.set_xlabel("")

    with np.errstate(divide="ignore", invalid="ignore"):
        reference = np.where(data.values() > 0, data.values(), np.nan)
        own = _sigma(data) / reference
        _band(bottom, scale.edges, 1 - own, 1 + own, "#999999")
        mplhep.histplot(before.values() / reference, bins=scale.edges, ax=bottom, edges=False, **old)
        if after is not None:
            mplhep.histplot(content / reference, bins=scale.edges, ax=bottom, yerr=False, color=colour, edges=False)
        _band(bottom, scale.edges, (content - error) / reference, (content + error) / reference, colour, hatch="/////")
        if low is not None and high is not None:
            _band(bottom, scale.edges, low / reference, high / reference, colour)
    bottom.axhline(1.0, color="black", lw=0.6)
    bottom.set_ylim(0.5, 1.5)
    scale.axis(bottom, text)
    return [np.asarray(values, dtype=np.float64) for values in (data.values(), before.values(), content, content + error)]


def _limits(axes: Sequence[Any], contents: Sequence[Sequence[NDArray[np.float64]]]) -> None:
    """From zero; logarithmic, all panels or none, if in one of them a bin dwarfs the others, and nowhere one is negative
    (but for a fluctuation of a small one)."""
    pooled = [np.concatenate([values[np.isfinite(values)] for values in panel]) for panel in contents]
    positive = [values[values > 0] for values in pooled]
    dwarfed = any(len(some) and values.max() > 10 * np.median(some) for values, some in zip(pooled, positive, strict=True))
    whole = all(len(some) and values.min() > -0.005 * values.max() for values, some in zip(pooled, positive, strict=True))
    for ax, values, some in zip(axes, pooled, positive, strict=True):
        peak, low = float(values.max()), float(values.min())
        if dwarfed and whole:
            ax.set_yscale("log")
            ax.set_ylim(max(0.5 * float(some.min()), 1e-5 * peak), 2 * peak)
        else:
            ax.set_ylim(min(0.0, 1.1 * low), 1.15 * peak)


def _fill(scale: _Scale, values: NDArray[np.float64], weight: NDArray[np.float64]) -> hist.Hist:
    filled = hist.Hist(hist.axis.Variable(scale.edges), storage=hist.storage.Weight())
    filled.fill(scale(values), weight=weight)
    if scale.point_mass is not None:
        filled[1] = (np.nan, np.nan)  # the gap between the point mass and the continuum: nothing is drawn there
    return filled


def _sigma(filled: hist.Hist) -> NDArray[np.float64]:
    return np.sqrt(np.asarray(filled.variances(), dtype=np.float64))


def _band(ax: Any, edges: Any, low: Any, high: Any, colour: str, *, hatch: str | None = None, name: str | None = None) -> None:
    """A band of one rectangle per bin (a bin between two that are NaN is drawn too); hatched without fill, or filled."""
    look: dict[str, Any] = {"facecolor": "none", "hatch": hatch, "edgecolor": colour} if hatch else {"facecolor": colour}
    ax.fill_between(
        np.repeat(edges, 2)[1:-1],
        np.repeat(low, 2),
        np.repeat(high, 2),
        lw=0,
        alpha=0.45 if hatch else 0.3,
        label=name,
        **look,
    )
