"""One look for all figures: colours and maps that colour-blind readers can tell apart, print-size text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from sciflow.errors import UserError
from sciflow.files import reason, replacing

__all__ = ["ERRORS", "MAGNITUDE", "PALETTE", "SPREAD", "figure", "style", "write_figure"]

# Okabe and Ito's palette, darkened where white text stands on it
PALETTE = {"passed": "#00734F", "warned": "#9A6700", "incomplete": "#555555", "failed": "#B03A00", "flagged": "#B03A00"}
MAGNITUDE, SPREAD, ERRORS = "gray", "cividis", "magma"

_STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 8.5,
    "axes.labelsize": 8,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "xtick.direction": "out",
    "ytick.direction": "out",
    "axes.linewidth": 0.6,
    "axes.formatter.limits": (-2, 4),
    "mathtext.fontset": "dejavusans",
}


@contextmanager
def style() -> Iterator[None]:
    """The figures' settings, for the length of a with block."""
    with mpl.rc_context(_STYLE):
        yield


def figure(width: float, height: float) -> Figure:
    """An empty figure in inches, independent of any interactive backend."""
    return Figure(figsize=(width, height), layout="compressed", dpi=160)


def write_figure(drawing: Figure, path: Path) -> Path:
    """Write a PNG completely or not at all. Raises `UserError` if it cannot be written."""
    try:
        # the style must still hold: ticks are made when the figure is drawn
        with replacing(path) as beside, style():
            drawing.savefig(beside, format="png", bbox_inches="tight", pad_inches=0.06, metadata={"Software": None})
    except OSError as error:
        raise UserError(f"{path}: the figure cannot be written: {reason(error)}") from error
    return path
