"""A correction as an object: folds, chunks, support, files. Whether it is right is tested in test_known_truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from sciflow_physics import truth
from sciflow_physics.data.roles import Roles
from sciflow_physics.model import Correction, fit_correction
from sciflow_physics.model.sample import fold_of

import sciflow
from sciflow.errors import UserError

FAST = {"epochs": 2, "member_epochs": 1, "hidden": (16,), "transforms": 2, "bins": 4, "members": 2, "progress": False}


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    return truth.draw("sim", 900, 1), truth.draw("data", 900, 2, negative=0.15)


@pytest.fixture(scope="module")
def correction(pair: tuple[xr.Dataset, xr.Dataset]) -> Correction:
    return fit_correction(*pair, truth.roles(), **FAST)


def test_columns_are_added_and_nothing_else_changes(pair: tuple[xr.Dataset, xr.Dataset], correction: Correction) -> None:
    sim = pair[0]
    out = correction.apply(sim)
    for name in sim.variables:
        assert np.array_equal(out[name].values, sim[name].values) and out[name].dtype == sim[name].dtype
    added = {f"{name}_corr{suffix}" for name in truth.FEATURES for suffix in ("", "_up", "_down")}
    assert set(out.variables) - set(sim.variables) == added | {"out_of_support", "weight_kinematic"}
    assert out["out_of_support"].dtype == bool and out["isolation_corr"].attrs["units"] == "GeV"
    for name in truth.FEATURES:
        low, middle, high = (out[f"{name}_corr{suffix}"].values for suffix in ("_down", "", "_up"))
        assert np.isfinite(middle).all() and (low <= middle).all() and (middle <= high).all()
        assert (low < high).mean() > 0.3
    assert (out["isolation_corr"] >= 0).all() and (out["isolation_corr"] == 0).any()


def test_results_do_not_depend_on_chunks_or_order(pair: tuple[xr.Dataset, xr.Dataset], correction: Correction) -> None:
    sim = truth.draw("sim", 5000, 9)
    whole = correction.apply(sim)
    order = np.random.default_rng(0).permutation(5000)
    shuffled = correction.apply(sim.isel(row=order))
    chunks = xr.concat([correction.apply(sim.isel(row=slice(a, b))) for a, b in ((0, 1), (1, 3000), (3000, 5000))], "row")
    for name in set(whole.variables) - set(sim.variables):
        assert np.array_equal(chunks[name].values, whole[name].values), name
        assert np.array_equal(shuffled[name].values, whole[name].values[order]), name


def test_saved_and_loaded(tmp_path: Path, pair: tuple[xr.Dataset, xr.Dataset], correction: Correction) -> None:
    folder = sciflow.save(correction, tmp_path / "correction")
    loaded = sciflow.load(folder, trust=("sciflow_physics",))
    assert isinstance(loaded, Correction)
    xr.testing.assert_identical(loaded.apply(pair[0]), correction.apply(pair[0]))


def test_no_model_has_seen_the_events_it_corrects(pair: tuple[xr.Dataset, xr.Dataset], correction: Correction) -> None:
    """Spoil every event of fold 0 in both samples: the model of fold 0 stays bit for bit, that of fold 1 does not."""
    spoiled = []
    for part in pair:
        part = part.copy(deep=True)
        part["width"] = part["width"] + 3.0 * (fold_of(part["event"].values, 2, 0) == 0)
        spoiled.append(part)
    other = fit_correction(*spoiled, truth.roles(), **FAST)

    def same(fold: int) -> bool:
        states = [model.folds[fold].state_dict() for model in (correction, other)]
        return all(torch.equal(states[0][name], states[1][name]) for name in states[0])

    assert same(0) and not same(1)


def test_out_of_support_is_flagged_and_finite(correction: Correction) -> None:
    sim = truth.draw("sim", 400, 12)
    usual = correction.apply(sim)["out_of_support"].values
    assert usual.mean() < 0.05
    far = sim.copy(deep=True)
    far["pt"][:50] = 1e4
    far["eta"][50:100] = -7.0
    far["width"][100:150] = 80.0
    far["leakage"][150:200] = 1e-9
    far["isolation"][200:250] = 1e6
    far["category"][250:300] = "XX"
    # each feature is ordinary by itself, the pair is not: width and shape are positively correlated
    far["width"][300:350], far["shape"][300:350] = 4.0, -5.0
    out = correction.apply(far)
    flagged = out["out_of_support"].values
    assert flagged[:300].all()
    assert np.array_equal(flagged[350:], usual[350:])
    for name in truth.FEATURES:
        for suffix in ("", "_up", "_down"):
            assert np.isfinite(out[f"{name}_corr{suffix}"].values).all()
    assert (out["weight_kinematic"] > 0).all()


def test_absent_features_stay_absent() -> None:
    tables = truth.roles().to_dict()
    tables["features"]["shape"]["present"] = "category == 'EB'"
    roles = Roles.from_dict(tables)
    parts = []
    for kind, seed in (("sim", 3), ("data", 4)):
        part = truth.draw(kind, 600, seed)  # type: ignore[arg-type]
        part["shape"] = part["shape"].where(part["category"] == "EB", 0.0)
        parts.append(part)
    correction = fit_correction(*parts, roles, **{**FAST, "folds": 1})
    out = correction.apply(parts[0])
    endcap = out["category"].values == "EE"
    assert (out["shape_corr"].values[endcap] == 0).all() and (out["shape_corr"].values[~endcap] != 0).all()
    assert np.isfinite(out["width_corr"].values).all()


def test_band_factor_is_students() -> None:
    """84.13 % point of Student's t with 4 degrees of freedom, from tables: 1.1416."""
    four = Correction(truth.roles().to_dict(), categories=["EB", "EE"], members=4, folds=1)
    assert four.band_factor == pytest.approx(1.1416, abs=1e-3)
    assert Correction(truth.roles().to_dict(), categories=["EB", "EE"], members=0, folds=1).band_factor == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method 'magic' is not one of"),
        ({"members": 1}, "0 or at least 2"),
        ({"tolerance": 0.1}, "method 'switch' does not take tolerance"),
        ({"folds": 0}, "at least 1 fold"),
    ],
)
def test_arguments_are_checked(pair: tuple[xr.Dataset, xr.Dataset], options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_correction(*pair, truth.roles(), **options)


def test_bad_rows_are_refused_by_name(pair: tuple[xr.Dataset, xr.Dataset], correction: Correction) -> None:
    sim, data = pair
    with pytest.raises(UserError, match="the simulation lacks 'width'"):
        correction.apply(sim.drop_vars("width"))
    broken = sim.copy(deep=True)
    broken["leakage"][7] = np.nan
    with pytest.raises(UserError, match=r"column 'leakage' has 1 values that are not finite \(first in row 7\)"):
        correction.apply(broken)
    foreign = data.copy(deep=True)
    foreign["category"][:] = "XX"
    with pytest.raises(UserError, match="no category occurs in both"):
        fit_correction(sim, foreign, truth.roles(), **FAST)
    with pytest.raises(UserError, match="at least 20 are needed"):
        fit_correction(sim.isel(row=slice(10)), data, truth.roles(), **FAST)
    constant = sim.copy(deep=True)
    constant["width"][:] = 1.0
    other = data.copy(deep=True)
    other["width"][:] = 1.0
    with pytest.raises(UserError, match="column 'width' has zero variance"):
        fit_correction(constant, other, truth.roles(), **FAST)
