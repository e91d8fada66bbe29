"""Results in files: round trips, weights, estimates, complex values; ArviZ (>= 1) reads and draws them."""

from __future__ import annotations

import importlib
import warnings
from dataclasses import replace

import arviz_base
import arviz_stats
import numpy as np
import pytest
import torch
import xarray

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior import Calls, Estimate, Evidence, Posterior
from sciflow.posterior.diagnostics import sbc
from sciflow.posterior.plots import parameters
from sciflow.posterior.recalibration import Recalibration
from sciflow.posterior.writing import from_tree, to_tree, write
from sciflow.store import read_draws
from sciflow.store.binding import HASHES
from sciflow.strict_json import loads

NAMES = ["mass", "spin"]
CERTIFICATE = Certificate([Test("k-hat", 0.3, 0.7, "<=")], subject="Sampler", context={"target": "Problem"})


def full(kind: type = Posterior, *, weighted: bool = False, dtype: torch.dtype = torch.float64, chains: int = 4):
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    return kind(
        torch.randn(chains, 100, 2, generator=generator, dtype=dtype),
        log_weight=normal(chains, 100) if weighted else None,
        log_prob=normal(chains, 100), log_likelihood=normal(chains, 100), log_proposal=normal(chains, 100),
        evidence=Evidence.from_replicates([1.0, 1.5, 0.8], "sequential"), calls=Calls(likelihood=70, gradient=3),
        statistics={"acceptance": 0.5, "k": float("nan")}, traces={"size": normal(20), "beta": normal(5, 2)},
        method="Sampler(steps=3)", seed=11, certificate=CERTIFICATE,
    )  # fmt: skip


def same(a, b) -> None:
    assert type(a) is type(b)
    for name in ("x", "log_weight", "log_prob", "log_likelihood", "log_proposal"):
        left, right = getattr(a, name), getattr(b, name)
        assert (left is None) == (right is None), name
        if left is not None:
            torch.testing.assert_close(left, right, rtol=0, atol=0)
    assert a.evidence == b.evidence and a.calls == b.calls and a.method == b.method and a.seed == b.seed
    # what is read has the hashes of what was written, and nothing else is new
    contexts = [{k: v for k, v in entry.certificate.context.items() if k != HASHES} for entry in (a, b)]
    assert a.certificate.tests == b.certificate.tests and contexts[0] == contexts[1]
    assert str(dict(a.statistics)) == str(dict(b.statistics))
    assert {name: entry.tolist() for name, entry in a.traces.items()} == {n: entry.tolist() for n, entry in b.traces.items()}


@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
@pytest.mark.parametrize("kind", [Posterior, Estimate])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_round_trip(tmp_path, name: str, kind: type, dtype: torch.dtype) -> None:
    result = full(kind, weighted=True, dtype=dtype)
    path = write(result, tmp_path / name, names=NAMES, observed={"y": torch.arange(3.0)}, constants={"sigma": 0.5})
    tree = read_draws(path)
    same(result, from_tree(tree))
    assert set(tree.children) >= {kind.group, "sample_stats", "observed_data", "constant_data", "evidence", "traces"}
    assert tree[kind.group]["x"].dims == ("chain", "draw", "feature") and list(tree[kind.group]["feature"].values) == NAMES
    assert set(tree["sample_stats"].data_vars) == {
        "log_weight",
        "log_prob",
        "log_likelihood",
        "log_q",
        "n_likelihood",
        "n_gradient",
    }
    assert len(loads(tree.attrs["hashes"])["y"]) == 64 and "torch" in loads(tree.attrs["versions"])
    assert "ArviZ ignores" in tree.attrs["warning"] and ("an estimate" in tree.attrs["warning"]) == (kind is Estimate)
    write(full(kind), path)  # replaces draws
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_bare_result_has_no_empty_groups() -> None:
    tree = to_tree(Posterior(torch.zeros(1, 3)))
    assert set(tree.children) == {"posterior", "sample_stats"} and tree["posterior"]["x"].dims == ("chain", "draw")
    assert from_tree(tree).certificate.verdict == "incomplete"
    image = to_tree(Posterior(torch.zeros(1, 3, 4, 5)), dims=["row", "column"], coords={"row": [1, 2, 3, 4]})
    assert image["posterior"]["x"].dims == ("chain", "draw", "row", "column")


def test_equal_weights_resamples_draws_with_their_statistics() -> None:
    """The resampled mean is the weighted mean within five standard errors of 400 draws, more than systematic resampling has."""
    result = full(weighted=True)
    tree = to_tree(result, equal_weights=True)
    x = tree["posterior"]["x"].values
    assert x.shape == (1, 400, 2) and "log_weight" not in tree["sample_stats"] and "warning" not in tree.attrs
    np.testing.assert_allclose(x.mean((0, 1)), result.mean().numpy(), atol=5 / 400**0.5)
    rows = {tuple(row): value for row, value in zip(result.rows.tolist(), result.log_prob.flatten().tolist(), strict=True)}
    assert [rows[tuple(row)] for row in x[0].tolist()] == tree["sample_stats"]["log_prob"].values[0].tolist()
    assert x.tolist() == to_tree(result, equal_weights=True)["posterior"]["x"].values.tolist()
    assert to_tree(full(), equal_weights=True)["posterior"]["x"].shape == (4, 100, 2)


@pytest.mark.parametrize("kind", [Posterior, Estimate])
@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
def test_arviz_opens_results(tmp_path, kind: type, name: str) -> None:
    path = write(full(kind), tmp_path / name, names=NAMES)
    engine = "h5netcdf" if name.endswith(".nc") else "zarr"
    tree = arviz_base.convert_to_datatree(xarray.open_datatree(path, engine=engine))
    table = arviz_stats.summary(tree, group=kind.group)
    assert list(table.index) == ["x[mass]", "x[spin]"]
    assert float(arviz_stats.ess(tree, group=kind.group)["x"].min()) > 100
    assert float(arviz_stats.rhat(tree, group=kind.group)["x"].max()) < 1.1


def test_arviz_draws_results(tmp_path) -> None:
    from matplotlib import pyplot

    style = importlib.import_module("matplotlib.style")
    if not hasattr(style, "core"):  # matplotlib 3.11 merged the module that arviz-plots 0.8 asks for into its package
        style.core = style
    plots, tree = importlib.import_module("arviz_plots"), read_draws(write(full(), tmp_path / "draws.nc", names=NAMES))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for plot in (plots.plot_pair, plots.plot_dist, plots.plot_forest):
            plot(tree, backend="matplotlib")
        plots.plot_trace(tree, backend="matplotlib", color=["#0072B2", "#D55E00"])
        plots.plot_rank(tree, backend="matplotlib", color=["#0072B2", "#D55E00"], stats={"ecdf_pit": {"n_simulations": 20}})
    pyplot.close("all")
    weighted = replace(full(weighted=True), log_weight=full().x[..., 0].double() * 3)
    shown = parameters(to_tree(weighted, names=NAMES))
    assert float(shown["mass"].mean()) == pytest.approx(float(weighted.mean()[0]), abs=0.3)


def test_calibration_and_recalibrated_intervals_are_labelled_groups(tmp_path) -> None:
    theta, draws = torch.randn(50, 2), torch.randn(50, 30, 2)
    recalibration = Recalibration(theta, draws, levels=(0.5, 0.8))
    result = recalibration.record(full())
    ranks = sbc(theta, draws, names=NAMES)
    assert result.certificate.context["recalibrated"]["levels"] == [0.5, 0.8]
    tree = to_tree(result, names=NAMES, calibration=ranks, recalibrated=recalibration.intervals(result))
    tree = read_draws(write(tree, tmp_path / "draws.nc"))
    assert tree["prior_sbc"]["rank"].shape == (2, 50) and tree["recalibrated"]["low"].dims == ("level", "feature")
    assert "inflated" in tree.attrs["recalibrated"]
    read = from_tree(tree)
    assert {"calibration of mass", "calibration of spin"} <= {test.name for test in read.certificate.tests}
    same(replace(result, certificate=read.certificate), read)
    again = to_tree(read, names=NAMES, calibration=ranks)  # the same ranks: no test is there twice
    assert from_tree(again).certificate.tests == read.certificate.tests
    with pytest.raises(UserError, match="of other simulations"):
        to_tree(read, calibration=sbc(torch.randn(60, 2), torch.randn(60, 30, 2), names=NAMES))


def test_bad_input_is_named_and_nothing_is_left(tmp_path) -> None:
    result = full()
    with pytest.raises(UserError, match=r"dims=\['a'\]: give 2 different names"):
        to_tree(Posterior(torch.zeros(1, 3, 4, 5)), dims=["a"])
    with pytest.raises(UserError, match="has shape"):
        to_tree(result, names=["one"])
    with pytest.raises(UserError, match="not a dimension"):
        to_tree(result, coords={"x": [1, 2]})
    with pytest.raises(UserError, match="no features"):
        to_tree(Posterior(torch.zeros(1, 3)), names=["a"])
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("mine")
    with pytest.raises(UserError, match="holds no draws"):
        write(result, tmp_path / "notes")
    tree = to_tree(result)
    del tree.attrs["certificate"]
    with pytest.raises(UserError, match="no certificate"):
        write(tree, tmp_path / "draws.zarr")
    with pytest.raises(UserError, match="holds no result"):
        from_tree(tree)
    with pytest.raises(UserError, match="cannot be written"):
        write(result, tmp_path / "notes" / "a.txt" / "draws.nc")
    with pytest.raises(UserError, match=r"draws.csv: draws are written as netCDF .*\.nc.* or as a Zarr folder"):
        write(result, tmp_path / "draws.csv")
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["notes"]
