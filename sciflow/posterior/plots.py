"""Pictures of a tree of draws."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import xarray

from sciflow.errors import UserError
from sciflow.posterior.chain_figures import rank_figure, trace_figure
from sciflow.posterior.pair_figure import pair_figure
from sciflow.posterior.rank_figures import figures
from sciflow.store import certificate_of
from sciflow.strict_json import loads

__all__ = ["Picture", "matplotlib", "parameters", "pictures"]

Picture = tuple[bytes, str]  # PNG and caption
_LOG = logging.getLogger(__name__)
_MOST_PAIRS, _MOST_TRACES = 5, 4
_INK, _ACCENT = "#0072B2", "#D55E00"  # a pair that colour-blind readers tell apart


def matplotlib() -> Any:
    """`matplotlib.pyplot`. Raises `UserError` if it is not installed."""
    try:
        return import_module("matplotlib.pyplot")
    except ImportError as error:
        raise UserError(f"pictures need matplotlib ({error}): pip install 'sciflow[plots]'") from error


def parameters(tree: xarray.DataTree, most: int | None = None) -> xarray.Dataset:
    """The first `most` parameters, one variable (chain, draw) each; weighted draws are resampled, complex values split.

    ArviZ's plots, too, may be given this: they ignore weights.
    """
    group = "posterior" if "posterior" in tree.children else "estimate"
    x: Any = tree[group]["x"]
    values = x.values
    labels = _labels(x)
    if values.dtype.kind == "c":
        values = np.stack([values.real, values.imag], -1)
        labels = [f"{part} {name}" for name in labels for part in ("Re", "Im")]
    values = values.reshape(*values.shape[:2], -1)[..., :most]
    if "sample_stats" in tree.children and "log_weight" in tree["sample_stats"]:
        stored: Any = tree["sample_stats"]["log_weight"]
        log_weight = stored.values.ravel()
        if not np.isfinite(log_weight.max(initial=-np.inf)):
            raise ValueError("no draw has a weight")
        weight = np.exp(log_weight - log_weight.max())
        picked = np.random.default_rng(0).choice(len(weight), len(weight), p=weight / weight.sum())
        values = values.reshape(1, -1, values.shape[2])[:, picked]
    return xarray.Dataset(
        {name: (["chain", "draw"], values[..., k]) for k, name in enumerate(labels[:most])},
        {"chain": np.arange(values.shape[0]), "draw": np.arange(values.shape[1])},
    )


def pictures(tree: xarray.DataTree) -> dict[str, Picture]:
    """Name -> (PNG, caption): draws, traces and ranks of chains, weights, calibration, as far as the tree has them."""
    pyplot, found = matplotlib(), {}
    makers: list[Callable[[xarray.DataTree], dict[str, tuple[Any, str]]]] = [_draws, _chains, _weights, _calibration]
    with pyplot.rc_context({"font.size": 9}):
        for make in makers:
            name = make.__name__.strip("_")
            try:
                made = make(tree)
            except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:  # draws that are no numbers, for instance
                _LOG.warning("no picture of %s: %s", name, error)
                continue
            for name, (figure, caption) in made.items():
                stream = io.BytesIO()
                figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", facecolor="white")
                pyplot.close(figure)
                found[name] = stream.getvalue(), caption
    return found


def _draws(tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    data, total = parameters(tree, _MOST_PAIRS), _count(tree)
    shown = len(data.data_vars)
    weighted = "sample_stats" in tree.children and "log_weight" in tree["sample_stats"]
    what = "draws of the estimate" if "estimate" in tree.children else "posterior draws"
    caption = f"{what}{', resampled by their weights' if weighted else ''}"
    caption += f"; the first {shown} of {total} parameters" if shown < total else ""
    named = _units(tree, [str(name) for name in data.data_vars])
    caption = f"{data.chain.size * data.draw.size} {caption}{'' if any(named.values()) else '; no units were given'}"
    return {"draws": (pair_figure(data, named), f"{'Pairs and margins' if shown > 1 else 'Histogram'} of {caption}.")}


def _chains(tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    group = "posterior" if "posterior" in tree.children else "estimate"
    chains = tree[group].sizes["chain"]
    if chains < 2 or ("sample_stats" in tree.children and "log_weight" in tree["sample_stats"]):
        return {}
    data, total = parameters(tree, _MOST_TRACES), _count(tree)
    rows = len(data.data_vars)
    more = f", the first {rows} of {total} parameters" if rows < total else ""
    named = _units(tree, [str(name) for name in data.data_vars])
    ranked = (
        "Ranks of each chain's draws among all. The grey 99 % band supposes independent draws, which those of chains are not: "
        "it is no test of the certificate, which has its own for chains."
    )
    traced = f"Traces of {chains} chains{more}: mixed chains overlap and show no trend."
    return {"traces": (trace_figure(data, named), traced), "ranks": (rank_figure(data), ranked)}


def _weights(tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    if "sample_stats" not in tree.children or "log_weight" not in tree["sample_stats"]:
        return {}
    pyplot = import_module("matplotlib.pyplot")
    stored: Any = tree["sample_stats"]["log_weight"]
    log_weight = stored.values.ravel().astype(float)
    if not np.isfinite(log_weight.max(initial=-np.inf)):
        raise ValueError("no draw has a weight")
    weight = np.exp(log_weight - log_weight.max())
    weight = np.sort(weight / weight.sum())[::-1]
    effective = 1 / np.square(weight).sum()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    positive = weight[weight > 0] * len(weight)
    left.hist(np.log10(positive), bins=50, color=_INK)
    left.set(xlabel="log10 of weight over mean weight", ylabel="draws", yscale="log")
    left.axvline(0, color=_ACCENT, linestyle="--", label="equal weights")
    left.legend(frameon=False)
    right.plot(1 + np.arange(len(weight)), weight.cumsum(), color=_INK, label="largest weights")
    number = np.arange(1, len(weight) + 1)
    right.plot(number, number / len(weight), color=_ACCENT, linestyle="--", label="equal weights")
    right.set(xscale="log", xlabel="number of draws, heaviest first", ylabel="share of the total weight", ylim=(0, 1.02))
    right.legend(frameon=False)
    text = f"Weights of {len(weight)} draws, effective number {effective:.0f}; the heaviest carries {weight[0]:.2%}."
    return {"weights": (figure, text)}


def _calibration(tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    return figures(tree, certificate_of(tree))


def _units(tree: xarray.DataTree, names: list[str]) -> dict[str, str]:
    """Parameter -> unit, of the parameters that have one."""
    stored = str(tree["posterior" if "posterior" in tree.children else "estimate"]["x"].attrs.get("units", ""))
    if not stored.startswith("{"):
        return dict.fromkeys(names, stored)
    known = loads(stored)
    return {name: known.get(name.removeprefix("Re ").removeprefix("Im "), "") for name in names}


def _count(tree: xarray.DataTree) -> int:
    x = tree["posterior" if "posterior" in tree.children else "estimate"]["x"]
    return int(np.prod(x.shape[2:], dtype=int)) * (2 if x.dtype.kind == "c" else 1)


def _labels(x: xarray.DataArray) -> list[str]:
    if x.ndim == 2:
        return ["x"]
    if x.ndim == 3 and x.dims[2] in x.coords:
        return [str(name) for name in x.coords[x.dims[2]].values]
    return [f"x[{', '.join(map(str, index))}]" for index in np.ndindex(*x.shape[2:])]
