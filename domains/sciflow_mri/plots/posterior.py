"""The picture of a reconstruction: what was measured, the mean, its uncertainty, some draws, and what may be believed."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import xarray as xr
from matplotlib.figure import Figure
from numpy.typing import NDArray

from sciflow.certificate import Certificate
from sciflow.store import certificate_of
from sciflow_mri.plots.style import ERRORS, MAGNITUDE, PALETTE, SPREAD, figure, style

__all__ = ["SCOPE", "posterior_figure"]

SCOPE = "relative to this prior and model, not for diagnosis"
_DRAWS = 3
_WIDE = 0.95  # level of the interval whose width is shown
_TOP = 99.8  # percentile of the values at the end of their scale
_UNIT = "units of the scan"
_LINES, _LETTERS = 15, 34  # of the words beside the pictures


@dataclass(frozen=True)
class _Panel:
    title: str
    values: NDArray[np.floating]
    top: float
    colours: str = MAGNITUDE
    bar: str = ""  # label of a colour bar of its own


def posterior_figure(
    tree: xr.DataTree, *, truth: NDArray[np.floating] | None = None, figures: Mapping[str, str] | None = None
) -> Figure:
    """Zero-filled image, mean, standard deviation, width of the 95 % interval and three draws of a tree of `result_tree`.

    Magnitudes share one scale and one colour bar. Scope and verdict are part of the picture, and so is a warning if the scan
    is out of the distribution of the prior.

    Arguments:
        truth: magnitude (y, x) in the units of the scan, if it is known: it and the error of the mean are shown too.
        figures: more lines of text, name -> value.
    """
    certificate = certificate_of(tree) or Certificate()
    panels = _panels(tree, truth)
    rows, columns = len(panels), len(panels[0])
    height, width = tree["images"]["std"].shape
    with style():
        drawing = figure(1.75 * columns + 1.4, 2 * 1.75 * min(height / width, 1.6) + 1.1)
        axes: Any = drawing.subplots(rows, columns, squeeze=False)
        extent, unit = _extent(tree["images"])
        shared = None
        for row, column in np.ndindex(rows, columns):
            panel, ax = panels[row][column], axes[row, column]
            if panel is None:
                _words(ax, tree, certificate, figures or {})
                continue
            image = ax.imshow(panel.values, cmap=panel.colours, vmin=0, vmax=panel.top, extent=extent, interpolation="nearest")
            ax.set_title(panel.title)
            ax.tick_params(length=2, labelleft=column == 0, labelbottom=row == rows - 1)
            if column == 0:
                ax.set_ylabel(f"y [{unit}]")
            if row == rows - 1:
                ax.set_xlabel(f"x [{unit}]")
            if panel.bar:
                drawing.colorbar(image, ax=ax, pad=0.03, label=panel.bar, extend="max")
            else:
                shared = image
        assert shared is not None
        drawing.colorbar(
            shared, ax=list(axes[:, :_DRAWS].ravel()), pad=0.015, aspect=35, label=f"magnitude [{_UNIT}]", extend="max"
        )
        _headline(drawing, tree, certificate)
    return drawing


def _panels(tree: xr.DataTree, truth: NDArray[np.floating] | None) -> list[list[_Panel | None]]:
    """Two rows: three columns of magnitudes, one of spreads, with a truth one more; None is the place for words."""
    images: Any = tree["images"]
    zero, mean = (np.abs(images[name].values) for name in ("zero_filled", "mean"))
    posterior: Any = tree["posterior"]
    count = posterior.sizes["draw"]
    draws = [np.abs(draw) for draw in posterior["x"].values[0, :_DRAWS]]
    std, interval = images["std"].values, images["interval"].sel(level=_WIDE).values
    width = interval[1] - interval[0]
    top = _top(mean, *draws, *([] if truth is None else [truth]))
    draws += [np.full_like(mean, np.nan)] * (_DRAWS - len(draws))
    upper: list[_Panel | None] = [
        _Panel("zero-filled", zero, top), _Panel(f"mean of {count} draws", mean, top),
        None if truth is None else _Panel("fully sampled", truth, top),
        _Panel("standard deviation", std, _top(std), SPREAD, f"std [{_UNIT}]"),
    ]  # fmt: skip
    lower: list[_Panel | None] = [
        *(_Panel(f"draw {number}" if number < count else "", draw, top) for number, draw in enumerate(draws)),
        _Panel(f"{100 * _WIDE:.0f} % interval", width, _top(width), SPREAD, f"width [{_UNIT}]"),
    ]
    if truth is not None:
        error = np.abs(mean - truth)
        upper.append(_Panel("|mean - fully sampled|", error, _top(error), ERRORS, f"error [{_UNIT}]"))
        lower.append(None)
    return [upper, lower]


def _top(*values: NDArray[np.floating]) -> float:
    return float(np.percentile(np.stack(values), _TOP)) or 1.0


def _extent(images: Any) -> tuple[tuple[float, float, float, float], str]:
    """left, right, bottom, top of the pixels' edges, and their unit; rows run downwards."""
    edges = []
    for dim in ("image_x", "image_y"):
        places = images[dim].values
        step = float(places[1] - places[0]) if len(places) > 1 else 1.0
        edges.append((float(places[0]) - step / 2, float(places[-1]) + step / 2))
    (left, right), (top, bottom) = edges
    return (left, right, bottom, top), str(images["image_x"].attrs.get("units", "pixel"))


def _headline(drawing: Figure, tree: xr.DataTree, certificate: Certificate) -> None:
    verdict = certificate.verdict
    flagged = int(tree.attrs.get("out_of_distribution", -1)) == 1
    text = f"certificate: {verdict.upper()} - {SCOPE}"
    if flagged:
        text = f"WARNING: OUT OF DISTRIBUTION - the prior has not seen scans like this one\n{text}"
    box = {"boxstyle": "round,pad=0.35", "facecolor": PALETTE["flagged" if flagged else verdict], "edgecolor": "none"}
    drawing.suptitle(text, fontsize=9.5, color="white", bbox=box)


def _words(ax: Any, tree: xr.DataTree, certificate: Certificate, figures: Mapping[str, str]) -> None:
    ax.set_axis_off()
    attrs, observed = tree.attrs, cast(Any, tree["observed_data"])
    mask = observed["mask"].values
    texts = [
        str(attrs.get("label", "")),
        f"R = {float(attrs['acceleration']):.3g}, {int(mask.sum())} of {mask.size} {'lines' if mask.ndim == 1 else 'points'}",
        f"noise {float(attrs['sigma']):.3g} per part",
        *(f"{name}: {value}" for name, value in figures.items()),
    ]
    for test in certificate.tests:
        if test.outcome in ("failed", "warned", "not evaluated"):
            texts.append(f"{test.outcome}: {test.name} {test.measured}")
    lines = [line for text in texts for line in textwrap.wrap(text, _LETTERS)]
    if len(lines) > _LINES:
        lines = [*lines[: _LINES - 1], "..."]
    ax.text(0.0, 1.0, "\n".join(lines), transform=ax.transAxes, va="top", ha="left", fontsize=6.5, linespacing=1.4)
