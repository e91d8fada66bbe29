"""One look for all figures: colours that colour-blind readers can tell apart, inward ticks, print-size text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sciflow.files import replacing

__all__ = ["PALETTE", "figure", "label", "style", "write_figure"]

# Okabe and Ito's palette
PALETTE = {"data": "#000000", "before": "#D55E00", "after": "#0072B2", "floor": "#009E73", "conditions only": "#CC79A7"}

_STYLE: Any = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.top": True,
    "ytick.right": True,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "axes.linewidth": 0.8,
    "lines.linewidth": 1.2,
    "axes.formatter.useoffset": False,
    "axes.formatter.limits": (-3, 4),
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def style() -> Iterator[None]:
    """The figures' settings, for the length of a with block."""
    with mpl.rc_context(_STYLE):
        yield


def figure(width: float = 7.0, height: float = 3.6) -> Figure:
    """An empty figure in inches, independent of any interactive backend."""
    return Figure(figsize=(width, height), layout="constrained", dpi=150)


def label(name: str, unit: str = "") -> str:
    """An axis label with its unit.

    >>> label("pt", "GeV"), label("HoverE")
    ('pt [GeV]', 'HoverE')
    """
    return f"{name} [{unit}]" if unit else name


def write_figure(drawing: Figure, path: Path) -> Path:
    """Write a PNG completely or not at all."""
    # the style must still hold: ticks are made when the figure is drawn
    with replacing(path) as beside, style():
        drawing.savefig(beside, format="png", metadata={"Software": None})
    return path
