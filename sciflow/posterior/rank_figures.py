"""Calibration ranks in a tree: their tests, and figures whose bands are those of the tests."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from importlib import import_module
from typing import Any

import numpy as np
import torch
import xarray
from scipy import stats

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.ranks import Ranks, holm, kolmogorov_smirnov
from sciflow.store.tree import library, numpy_of

__all__ = ["figures", "half_width", "rank_group", "rank_tests", "with_rank_tests"]

_LEVEL = 0.01
_INK, _REJECTED, _BAND = "#0072B2", "#D55E00", "#D9D9D9"


def rank_group(calibration: Any) -> xarray.Dataset | None:
    """The group `prior_sbc` of a `Battery`, or of `Ranks`; None if there are none."""
    ranks = list(getattr(calibration, "ranks", calibration))
    if not ranks:
        return None
    values = np.stack([numpy_of(entry.values) for entry in ranks])
    coords = {"quantity": [entry.name for entry in ranks], "simulation": np.arange(values.shape[1])}
    attributes = {**library(), "level": float(getattr(calibration, "level", _LEVEL))}
    return xarray.Dataset({"rank": (["quantity", "simulation"], values)}, coords, attributes)


def rank_tests(group: Any) -> list[Test]:
    """One per quantity: the Kolmogorov-Smirnov p-value of its ranks, adjusted by Holm's rule for all that are in the group."""
    values = torch.from_numpy(np.ascontiguousarray(group["rank"].values))
    level = float(group.attrs.get("level", _LEVEL))
    adjusted = f"Holm-adjusted for {len(values)} tests, "
    names = [str(name) for name in group["quantity"].values]
    return [
        Ranks(name, row).test(level, p, adjusted=adjusted)
        for name, row, p in zip(names, values, holm(kolmogorov_smirnov(values)), strict=True)
    ]


def with_rank_tests(certificate: Certificate, calibration: Iterable[Ranks] | Any, group: Any) -> Certificate:
    """The certificate with the tests of the ranks that go with the draws, so that no figure shows what no test judges.

    Raises `UserError` if the certificate has calibration tests of other simulations.
    """
    more = []
    found = getattr(calibration, "tests", None) or rank_tests(group)
    known = {test.name: test for test in certificate.tests}
    for test in found:
        before = known.get(test.name)
        if before is None:
            more.append(test)
        elif before.value != test.value:
            raise UserError(
                f"the certificate has {test.name!r} with {before.measured}, these ranks give {test.measured}: they are of "
                "other simulations; give the ranks that the certificate was made of"
            )
    return certificate.extended(more) if more else certificate


def half_width(simulations: int, level: float, quantities: int) -> float:
    """D with P(sup |F_n(u) - u| > D) = level / quantities: a curve leaves this band if and only if Holm's rule rejects one.

    >>> round(half_width(1000, 0.01, 1), 4)
    0.0513
    """
    return float(stats.kstwo.isf(level / quantities, simulations))


def figures(tree: xarray.DataTree, certificate: Certificate | None) -> dict[str, tuple[Any, str]]:
    """Name -> (matplotlib figure, caption): ECDF of the ranks minus uniform, and coverage minus credibility.

    If no rank curve leaves its band, no coverage curve can leave its own, which is twice as wide: coverage at credibility c
    is the difference of the ECDF at (1 + c) / 2 and (1 - c) / 2. Hence neither figure contradicts the tests.
    """
    if "prior_sbc" not in tree.children:
        return {}
    group: Any = tree["prior_sbc"]
    tests = rank_tests(group)
    names, n = [str(name) for name in group["quantity"].values], group.sizes["simulation"]
    level = float(group.attrs.get("level", _LEVEL))
    width = half_width(n, level, len(names))
    ranks = np.sort(group["rank"].values, axis=1)
    u = np.linspace(0, 1, 501)
    ecdf = np.stack([np.searchsorted(row, u, side="right") / n for row in ranks])
    rejected = np.array([test.outcome == "failed" for test in tests])
    verdict = _verdict(names, rejected, tests, certificate)
    c = np.linspace(0, 1, 251)
    covered = np.stack([np.interp((1 + c) / 2, u, row) - np.interp((1 - c) / 2, u, row) for row in ecdf])
    percent = ("credibility [%]", "coverage − credibility [%]")
    rank = _panels(names, u, ecdf - u, width, rejected, ("rank of the truth among its draws", "ECDF − uniform"))
    cover = _panels(names, 100 * c, 100 * (covered - c), 200 * width, rejected, percent)
    joint = f"Kolmogorov-Smirnov band of all {len(names)} together at {100 * level:g} %"
    return {
        "calibration": (rank, f"Ranks of the truth in {n} simulations. Grey: {joint}. {verdict}"),
        "coverage": (cover, "Coverage of central intervals minus credibility, from the same ranks, judged by the same tests. "
                            "Grey: what their band allows here."),
    }  # fmt: skip


def _verdict(names: list[str], rejected: np.ndarray, tests: list[Test], certificate: Certificate | None) -> str:
    stated = {} if certificate is None else {test.name: test for test in certificate.tests}
    wrong = [name for name, bad in zip(names, rejected, strict=True) if bad]
    said = f"Rejected: {', '.join(wrong)}." if wrong else "All curves stay inside, no test rejects."
    if all(test.name in stated and stated[test.name].value == test.value for test in tests):
        return f'{said} The certificate\'s tests "calibration of ..." are these.'
    return f"{said} This test is not among those of the certificate."


def _panels(
    names: list[str], x: np.ndarray, curves: np.ndarray, width: float, rejected: np.ndarray, labels: tuple[str, str]
) -> Any:
    pyplot, ticker = import_module("matplotlib.pyplot"), import_module("matplotlib.ticker")
    columns = min(len(names), 3)
    rows = -(-len(names) // columns)
    size = (max(3.2 * columns, 4.2), 2.4 * rows + 0.9)
    figure, axes = pyplot.subplots(rows, columns, figsize=size, sharex=True, sharey=True, squeeze=False, layout="constrained")
    for number, (axis, name, curve, bad) in enumerate(zip(axes.flat, names, curves, rejected, strict=False)):
        band = axis.axhspan(-width, width, color=_BAND, linewidth=0)
        axis.axhline(0, color="black", linewidth=0.6)
        # style and title say it too, for readers who cannot tell the colours
        axis.plot(x, curve, color=_REJECTED if bad else _INK, linestyle="--" if bad else "-", linewidth=1.4)
        axis.set_title(textwrap.fill(f"{name}: rejected" if bad else name, 34), fontsize=9)
        axis.set_xlim(x[0], x[-1])
        axis.xaxis.set_major_locator(ticker.FixedLocator([0, 0.25 * x[-1], 0.5 * x[-1], 0.75 * x[-1]]))  # 1 meets 0 of the next
        axis.tick_params(labelbottom=number + columns >= len(names))
    for axis in axes.flat[len(names) :]:
        axis.set_axis_off()
    figure.supxlabel(labels[0], fontsize=9)
    figure.supylabel(labels[1], fontsize=9)
    lines = pyplot.matplotlib.lines.Line2D
    handles = [band, lines([], [], color=_INK), lines([], [], color=_REJECTED, linestyle="--")]
    figure.legend(handles, ["band", "kept", "rejected"], loc="outside upper center", ncols=3, frameon=False, fontsize=8)
    return figure
