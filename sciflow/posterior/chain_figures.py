"""Chains: traces, and whether their ranks among all draws agree."""

from __future__ import annotations

import math
from importlib import import_module
from typing import Any

import numpy as np
import xarray

from sciflow.posterior.pair_figure import joined_offsets, labelled

__all__ = ["COLOURS", "rank_band", "rank_figure", "trace_figure"]

COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito's
_STYLES = ["-", "--", ":", "-."]
_BAND = "#D9D9D9"
_POINTS, _NAMED = 2000, 8  # per trace; chains in a legend


def trace_figure(data: xarray.Dataset, units: dict[str, str]) -> Any:
    """The variables (chain, draw) of `data` against the number of the draw."""
    pyplot, names = import_module("matplotlib.pyplot"), [str(name) for name in data.data_vars]
    figure, axes = pyplot.subplots(
        len(names), 1, figsize=(9, 1.5 * len(names) + 0.7), squeeze=False, sharex=True, layout="constrained"
    )
    step = max(1, -(-data.sizes["draw"] // _POINTS))
    number = np.arange(data.sizes["draw"])[::step]
    for axis, name in zip(axes[:, 0], names, strict=True):
        for chain, values in enumerate(data[name].values):
            colour, style = COLOURS[chain % len(COLOURS)], _STYLES[chain // len(COLOURS) % len(_STYLES)]
            axis.plot(number, values[::step], color=colour, linestyle=style, linewidth=0.6, alpha=0.8, label=f"chain {chain}")
        axis.set_ylabel(labelled(name, units))
        axis.margins(x=0)
    axes[-1, 0].set_xlabel("draw")
    _legend(figure, axes[0, 0], data.sizes["chain"])
    figure.align_ylabels()
    joined_offsets(figure)
    return figure


def rank_figure(data: xarray.Dataset) -> Any:
    """For each variable (chain, draw): ECDF of each chain's ranks among all draws, minus uniform, with `rank_band`."""
    pyplot, names = import_module("matplotlib.pyplot"), [str(name) for name in data.data_vars]
    chains, draws = data.sizes["chain"], data.sizes["draw"]
    columns = min(len(names), 2)
    rows = -(-len(names) // columns)
    figure, axes = pyplot.subplots(
        rows, columns, figsize=(4.4 * columns, 2.4 * rows + 0.6), squeeze=False, sharex=True, sharey=True, layout="constrained"
    )
    u, width = np.linspace(0, 1, 401), rank_band(chains, draws)
    for axis, name in zip(axes.flat, names, strict=False):
        ranks = np.empty(chains * draws)
        ranks[data[name].values.ravel().argsort(kind="stable")] = (np.arange(chains * draws) + 0.5) / (chains * draws)
        axis.axhspan(-width, width, color=_BAND, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.6)
        for chain, own in enumerate(np.sort(ranks.reshape(chains, draws), axis=1)):
            colour, style = COLOURS[chain % len(COLOURS)], _STYLES[chain // len(COLOURS) % len(_STYLES)]
            curve = np.searchsorted(own, u, side="right") / draws - u
            axis.plot(u, curve, color=colour, linestyle=style, linewidth=1.2, label=f"chain {chain}")
        axis.set_title(name, fontsize=9)
        axis.set_xlim(0, 1)
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel("rank among all draws", fontsize=9)
    figure.supylabel("ECDF − uniform", fontsize=9)
    _legend(figure, axes.flat[0], chains)
    return figure


def rank_band(chains: int, draws: int, level: float = 0.01) -> float:
    """Half-width of a band that all chains leave with probability <= `level`, if draws are independent and chains agree.

    The ECDF of one chain minus that of all is (1 - 1/C) of its distance to the others: the two-sample Kolmogorov-Smirnov
    distance with its asymptotic quantile, at level / C for each of C chains.

    >>> round(rank_band(4, 1000), 4)
    0.0501
    """
    others = (chains - 1) * draws
    return (1 - 1 / chains) * math.sqrt(-0.5 * math.log(level / chains / 2) * (1 / draws + 1 / others))


def _legend(figure: Any, axis: Any, chains: int) -> None:
    handles, labels = axis.get_legend_handles_labels()
    if chains > _NAMED:
        handles, labels = handles[:_NAMED], [*labels[: _NAMED - 1], f"... of {chains} chains"]
    figure.legend(handles, labels, loc="outside upper center", ncols=min(len(labels), _NAMED), frameon=False, fontsize=8)
