"""The mean of a feature in bins of a condition."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from sciflow_physics.metrics import Profile
from sciflow_physics.plots.style import PALETTE, figure, style

__all__ = ["profile_figure"]

_MARKERS = {"data": "o", "before": "s", "after": "D"}


def profile_figure(
    panels: Sequence[tuple[str, Mapping[str, Profile]]], quantity: str, against: str, *, logarithmic: bool = False
) -> Figure:
    """One column per panel: (title, {"data" | "before" | "after": profile}); below, the difference to data.

    The difference is in errors of the data and the simulation together, so that it can be read as a pull.
    """
    with style():
        drawing = figure(0.6 + 3.3 * len(panels), 3.6)
        axes = drawing.subplots(2, len(panels), sharex="col", height_ratios=(2.2, 1), squeeze=False)
        for (title, curves), (top, bottom) in zip(panels, axes.T, strict=True):
            reference = curves["data"]
            edges = np.log(reference.edges) if logarithmic else reference.edges
            centres, half = (edges[1:] + edges[:-1]) / 2, np.diff(edges) / 2
            for shift, (name, curve) in enumerate(curves.items()):
                place = centres + (shift - (len(curves) - 1) / 2) * 0.3 * half
                place = np.exp(place) if logarithmic else place
                kind = {"color": PALETTE[name], "marker": _MARKERS[name], "ms": 3.5, "lw": 0, "elinewidth": 1.0}
                top.errorbar(
                    place,
                    curve.mean,
                    curve.error,
                    xerr=[place - reference.edges[:-1], reference.edges[1:] - place] if name == "data" else None,
                    label=name.capitalize(),
                    **kind,
                )
                if name != "data":
                    pull = (curve.mean - reference.mean) / np.hypot(curve.error, reference.error)
                    bottom.plot(place, pull, color=PALETTE[name], marker=_MARKERS[name], ms=3.5, lw=0)
            bottom.axhline(0, color="black", lw=0.6)
            bottom.axhspan(-1, 1, color="#999999", alpha=0.3, lw=0)
            pulls = [np.asarray(line.get_ydata(), dtype=float) for line in bottom.lines[:-1]]
            reach = max(3.0, *(float(np.nanmax(np.abs(pull), initial=0.0)) for pull in pulls))
            bottom.set_ylim(-1.15 * reach, 1.15 * reach)
            bottom.set_xlabel(against)
            if logarithmic:
                bottom.set_xscale("log")
                ticks = _round_ticks(reference.edges[0], reference.edges[-1])
                bottom.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
                bottom.xaxis.set_minor_formatter(NullFormatter())
            bottom.set_xlim(reference.edges[0], reference.edges[-1])
            top.set_title(title)
        axes[0, 0].set_ylabel(f"Mean {quantity}")
        axes[1, 0].set_ylabel(r"$\Delta$ / $\sigma$")
        handles, names = axes[0, 0].get_legend_handles_labels()
        drawing.legend(handles, names, loc="outside upper center", ncols=len(names))
    return drawing


def _round_ticks(low: float, high: float) -> list[float]:
    """Round numbers between low and high, at most about seven."""
    for steps in ((1, 2, 3, 4, 5, 6, 8), (1, 2, 3, 5, 7), (1, 2, 5), (1,)):
        powers = range(int(np.floor(np.log10(low))), int(np.ceil(np.log10(high))) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if len(ticks) <= 7:
            break
    return ticks
