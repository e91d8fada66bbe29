"""Pictures of a tree of draws, through ArviZ where it has them."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable
from importlib import import_module
from typing import Any

import numpy as np
import xarray

from sciflow.errors import UserError

__all__ = ["Picture", "arviz_plots", "parameters", "pictures"]

Picture = tuple[bytes, str]  # PNG and caption
_LOG = logging.getLogger(__name__)
_MOST_PAIRS, _MOST_TRACES, _MOST_POINTS = 5, 4, 1500
_CHAINS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]  # Okabe and Ito's
_INK, _ACCENT = "#0072B2", "#D55E00"  # a pair that colour-blind readers tell apart


def arviz_plots() -> Any:
    """`arviz_plots`, with matplotlib as its backend. Raises `UserError` if one of them is not installed."""
    try:
        style = import_module("matplotlib.style")
        if not hasattr(style, "core"):  # matplotlib 3.11 merged the module that arviz-plots 0.8 asks for into its package
            style.core = style  # type: ignore[attr-defined]
        import_module("matplotlib.pyplot")
        return import_module("arviz_plots")
    except ImportError as error:
        raise UserError(f"pictures need matplotlib and arviz-plots ({error}): pip install 'sciflow[plots]'") from error


def parameters(tree: xarray.DataTree, most: int | None = None) -> xarray.Dataset:
    """The first `most` parameters, one variable (chain, draw) each; weighted draws are resampled, complex values split.

    This is what ArviZ's plots are given: they ignore weights.
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
        weight = np.exp(log_weight - log_weight.max())
        picked = np.random.default_rng(0).choice(len(weight), len(weight), p=weight / weight.sum())
        values = values.reshape(1, -1, values.shape[2])[:, picked]
    return xarray.Dataset(
        {name: (["chain", "draw"], values[..., k]) for k, name in enumerate(labels[:most])},
        {"chain": np.arange(values.shape[0]), "draw": np.arange(values.shape[1])},
    )


def pictures(tree: xarray.DataTree) -> dict[str, Picture]:
    """Name -> (PNG, caption): draws, traces and ranks of chains, weights, calibration, as far as the tree has them."""
    import warnings

    plots = arviz_plots()
    pyplot, found = import_module("matplotlib.pyplot"), {}
    makers: list[Callable[[Any, xarray.DataTree], dict[str, tuple[Any, str]]]] = [_draws, _chains, _weights, _calibration]
    with warnings.catch_warnings(), pyplot.rc_context({"figure.constrained_layout.use": False, "font.size": 9}):
        warnings.simplefilter("ignore")  # ArviZ's advice on its own arguments and on fonts
        for make in makers:
            try:
                made = make(plots, tree)
            except (ValueError, IndexError, TypeError, ZeroDivisionError) as error:  # a density of equal draws, for instance
                _LOG.warning("no picture of %s: %s", make.__name__.strip("_"), error)
                continue
            for name, (figure, caption) in made.items():
                stream = io.BytesIO()
                figure.savefig(stream, format="png", dpi=110, bbox_inches="tight", facecolor="white")
                pyplot.close(figure)
                found[name] = stream.getvalue(), caption
    return found


def _draws(plots: Any, tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    data, total = parameters(tree, _MOST_PAIRS), _count(tree)
    shown = len(data.data_vars)
    weighted = "sample_stats" in tree.children and "log_weight" in tree["sample_stats"]
    what = "draws of the estimate" if "estimate" in tree.children else "posterior draws"
    caption = f"{what}{', resampled by their weights' if weighted else ''}"
    caption += f"; the first {shown} of {total} parameters" if shown < total else ""
    kind = "hist" if weighted else "kde"  # a smoothing kernel takes the duplicates of resampling for narrow modes
    if shown == 1:
        panel = plots.plot_dist(_tree(data), kind=kind, backend="matplotlib", figure_kwargs={"figsize": (5, 3)})
        return {"draws": (_figure(panel), caption[0].upper() + caption[1:] + ".")}
    data = _thinned(data)
    size = 1.9 * shown + 1
    panel = plots.plot_pair(
        _tree(data), backend="matplotlib", visuals={"scatter": {"color": _INK, "alpha": 0.25, "s": 4}},
        marginal_kind=kind, figure_kwargs={"figsize": (size, size)},
    )  # fmt: skip
    figure = _figure(panel)
    for axis in figure.axes:
        if not axis.collections:  # densities have no scale worth a tick
            axis.set_yticks([])
    return {"draws": (figure, f"Pairs and margins of {data.chain.size * data.draw.size} {caption}.")}


def _chains(plots: Any, tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    group = "posterior" if "posterior" in tree.children else "estimate"
    chains = tree[group].sizes["chain"]
    if chains < 2 or ("sample_stats" in tree.children and "log_weight" in tree["sample_stats"]):
        return {}
    data, total = parameters(tree, _MOST_TRACES), _count(tree)
    rows = len(data.data_vars)
    more = f", the first {rows} of {total} parameters" if rows < total else ""
    trace = _figure(
        plots.plot_trace(
            _tree(data), backend="matplotlib", figure_kwargs={"figsize": (9, 1.8 * rows + 0.6)}, col_wrap=1, color=_CHAINS
        )
    )
    _finished(trace, "draw", "value")
    columns = min(rows, 2)
    rank = _figure(
        plots.plot_rank(
            _tree(data), backend="matplotlib", figure_kwargs={"figsize": (4.4 * columns, 2.9 * -(-rows // columns))},
            col_wrap=columns, color=_CHAINS, visuals={"remove_axis": False}, stats={"ecdf_pit": {"n_simulations": 200}},
        )
    )  # fmt: skip
    _finished(rank, "rank among all draws", "ECDF − uniform")
    return {
        "traces": (trace, f"Traces of {chains} chains{more}: mixed chains overlap and show no trend."),
        "ranks": (rank, "Ranks of each chain's draws among all: chains that agree stay in the grey 99 % band, which supposes "
                        "independent draws."),
    }  # fmt: skip


def _weights(plots: Any, tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    if "sample_stats" not in tree.children or "log_weight" not in tree["sample_stats"]:
        return {}
    pyplot = import_module("matplotlib.pyplot")
    stored: Any = tree["sample_stats"]["log_weight"]
    log_weight = stored.values.ravel().astype(float)
    weight = np.exp(log_weight - log_weight.max())
    weight = np.sort(weight / weight.sum())[::-1]
    effective = 1 / np.square(weight).sum()
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(9, 3), layout="constrained")
    positive = weight[weight > 0] * len(weight)
    left.hist(np.log10(positive), bins=50, color=_INK)
    left.set(xlabel="log10 of weight over mean weight", ylabel="draws", yscale="log")
    left.axvline(0, color=_ACCENT, linestyle="--", label="equal weights")
    left.legend(frameon=False)
    right.plot(np.arange(1, len(weight) + 1), weight.cumsum(), color=_INK, label="largest weights")
    right.plot([1, len(weight)], [1 / len(weight), 1], color=_ACCENT, linestyle="--", label="equal weights")
    right.set(xscale="log", xlabel="number of draws, heaviest first", ylabel="share of the total weight", ylim=(0, 1.02))
    right.legend(frameon=False)
    text = f"Weights of {len(weight)} draws, effective number {effective:.0f}; the heaviest carries {weight[0]:.2%}."
    return {"weights": (figure, text)}


def _calibration(plots: Any, tree: xarray.DataTree) -> dict[str, tuple[Any, str]]:
    if "prior_sbc" not in tree.children:
        return {}
    ranks: Any = tree["prior_sbc"]["rank"]
    n, rows = ranks.sizes["simulation"], ranks.sizes["quantity"]
    data = xarray.Dataset(
        {str(name): ("simulation", ranks.sel(quantity=name).values) for name in ranks["quantity"].values},
        {"simulation": np.arange(n)},
    )
    columns = min(rows, 3)
    size = (3.4 * columns, 2.6 * -(-rows // columns))
    found = {}
    for name, coverage in (("calibration", False), ("coverage", True)):
        panel = plots.plot_ecdf_pit(
            _tree(data, "prior_sbc"), sample_dims=["simulation"], coverage=coverage, backend="matplotlib",
            figure_kwargs={"figsize": size}, col_wrap=columns, visuals={"remove_axis": False},
            stats={"ecdf_pit": {"n_simulations": 400}},
        )  # fmt: skip
        figure = _figure(panel)
        _finished(figure, "credibility [%]" if coverage else "rank of the truth", "ECDF − uniform")
        what = "Coverage of central intervals minus credibility" if coverage else "Ranks of the truth, ECDF minus uniform"
        found[name] = (figure, f"{what}, {n} simulations: a calibrated posterior stays in the grey 99 % band.")
    return found


def _tree(data: xarray.Dataset, group: str = "posterior") -> xarray.DataTree:
    return xarray.DataTree.from_dict({group: data})


def _figure(panel: Any) -> Any:
    figure = panel.viz["figure"]
    return figure.item() if hasattr(figure, "item") else figure


def _finished(figure: Any, x: str, y: str) -> None:
    for axis in figure.axes:
        axis.set(xlabel=x, ylabel=y)
    figure.tight_layout()


def _thinned(data: xarray.Dataset) -> xarray.Dataset:
    step = -(-data.chain.size * data.draw.size // _MOST_POINTS)
    return data.isel(draw=slice(None, None, max(step, 1)))


def _count(tree: xarray.DataTree) -> int:
    x = tree["posterior" if "posterior" in tree.children else "estimate"]["x"]
    return int(np.prod(x.shape[2:], dtype=int)) * (2 if x.dtype.kind == "c" else 1)


def _labels(x: xarray.DataArray) -> list[str]:
    if x.ndim == 2:
        return ["x"]
    if x.ndim == 3 and x.dims[2] in x.coords:
        return [str(name) for name in x.coords[x.dims[2]].values]
    return [f"x[{', '.join(map(str, index))}]" for index in np.ndindex(*x.shape[2:])]
