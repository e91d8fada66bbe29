"""How a correction is learned: symmetry of the conditions, going on after an interruption."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sciflow_physics import truth
from sciflow_physics.data.roles import Roles
from sciflow_physics.model import fit_correction, fold_training

from sciflow.errors import UserError
from sciflow.training import fit

FAST: dict[str, Any] = {
    "epochs": 2, "member_epochs": 1, "hidden": (16,), "transforms": 2, "bins": 4, "members": 2, "folds": 2, "progress": False,
}  # fmt: skip


def symmetric_roles() -> Roles:
    tables = truth.roles().to_dict()
    tables["conditions"]["eta"]["symmetric"] = True
    return Roles.from_dict(tables)


def test_a_symmetric_condition_matters_by_its_absolute_value_only() -> None:
    sim, data = truth.draw("sim", 600, 1), truth.draw("data", 600, 2)
    mirrored = sim.assign(eta=-sim["eta"])
    results = []
    for roles in (symmetric_roles(), truth.roles()):
        correction = fit_correction(sim, data, roles, **FAST)
        there, back = correction.apply(sim), correction.apply(mirrored)
        assert np.array_equal(back["eta"].values, -sim["eta"].values)
        results.append([np.array_equal(there[f"{name}_corr"].values, back[f"{name}_corr"].values) for name in truth.FEATURES])
    assert all(results[0]) and not any(results[1])


def test_an_interrupted_fit_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sim, data = truth.draw("sim", 600, 1), truth.draw("data", 600, 2)
    whole = fit_correction(sim, data, truth.roles(), **FAST)
    trainings = []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        trainings.append(options["checkpoint"])
        if len(trainings) == 4:
            raise KeyboardInterrupt
        return fit(*arguments, **options)

    monkeypatch.setattr(fold_training, "fit", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fit_correction(sim, data, truth.roles(), checkpoint=tmp_path / "state", **FAST)
    resumed = fit_correction(sim, data, truth.roles(), checkpoint=tmp_path / "state", **FAST)
    assert len(set(trainings)) == 6  # two folds of one nominal training and two members, each with a folder of its own
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name


def test_a_scaled_feature_is_corrected_as_the_quantity_it_stands_for() -> None:
    tables = truth.roles().to_dict()
    tables["features"]["isolation"]["scale"] = "pt*cosh(eta)"
    scaled = Roles.from_dict(tables)
    pairs = {}
    for name, roles in (("ratio", scaled), ("energy", truth.roles())):
        pair = [truth.draw("sim", 600, 1), truth.draw("data", 600, 2)]
        if name == "ratio":  # the same quantity, written as its ratio to the energy
            pair = [part.assign(isolation=part["isolation"] / (part["pt"] * np.cosh(part["eta"]))) for part in pair]
        pairs[name] = fit_correction(*pair, roles, **FAST).apply(pair[0])
    energy = pairs["energy"]["pt"].values * np.cosh(pairs["energy"]["eta"].values)
    for suffix in ("", "_up", "_down"):
        found = pairs["ratio"][f"isolation_corr{suffix}"].values * energy
        expected = pairs["energy"][f"isolation_corr{suffix}"].values
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-6)
        assert np.array_equal(found == 0, expected == 0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"scale": "pt*width"}, "none of the conditions"), ({"scale": "pt", "point_mass": 1.0}, "can only be 0")],
)
def test_a_scale_needs_conditions_and_a_mass_at_zero(change: dict[str, Any], reason: str) -> None:
    tables = truth.roles().to_dict()
    tables["features"]["isolation"].update(change)
    with pytest.raises(UserError, match=reason):
        Roles.from_dict(tables)


def test_a_scale_has_to_be_positive() -> None:
    tables = truth.roles().to_dict()
    tables["features"]["isolation"]["scale"] = "eta"
    sim, data = truth.draw("sim", 100, 1), truth.draw("data", 100, 2)
    with pytest.raises(UserError, match="the scale 'eta' of 'isolation' is not positive everywhere"):
        fit_correction(sim, data, Roles.from_dict(tables), **FAST)
