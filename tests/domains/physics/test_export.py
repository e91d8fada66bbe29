"""ONNX: the graph is the correction, for any batch, preprocessing included."""

from __future__ import annotations

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import xarray as xr
from sciflow_physics.data.roles import Roles
from sciflow_physics.export import TOLERANCE, Exported, export_onnx, typical_inputs
from sciflow_physics.model import Correction, fit_correction
from sciflow_physics.model.sample import fold_of, sample_of

from sciflow.errors import UserError
from sciflow.preprocessing import Preprocessing

FULL = """
[category]
column = "type"
[features.iso]
unit = "GeV"
transform = "log"
point_mass = 0.0
scale = "pt*cosh(eta)"
[features.r9]
transform = "bounded"
lower = 0.0
upper = 1.5
[features.es]
present = "category == 'EE'"
[conditions.pt]
unit = "GeV"
transform = "log"
[conditions.eta]
symmetric = true
"""
PLAIN = "[features.x]\n[features.y]"


def _rows(roles: Roles, n: int, seed: int) -> xr.Dataset:
    rng = np.random.default_rng(seed)
    columns = {
        "iso": np.where(rng.uniform(size=n) < 0.4, 0.0, 1 + rng.exponential(3 + seed, n)),
        "r9": rng.beta(8 + seed, 2, n),
        "es": rng.normal(seed, 1, n),
        "pt": 20 + rng.exponential(20, n),
        "eta": rng.uniform(-2.5, 2.5, n),
        "x": rng.normal(seed, 1, n),
        "y": rng.normal(0, 1 + seed, n),
    }
    category = rng.choice(["EB", "EE"], n)
    columns["es"] = np.where(category == "EE", columns["es"], 0.0)
    data = {name: ("row", columns[name]) for name in roles.variables}
    if roles.category:
        data["category"] = ("row", category)
    return xr.Dataset(data, {"event": ("row", np.arange(n) // 2), "id": ("row", np.arange(n))})


@pytest.fixture(scope="module")
def fitted() -> tuple[Correction, xr.Dataset]:
    roles = Roles.from_text(FULL)
    sim, data = _rows(roles, 600, 0), _rows(roles, 600, 1)
    options: dict = {"folds": 2, "members": 2, "epochs": 1, "member_epochs": 1, "transforms": 2, "hidden": (16, 16)}
    return fit_correction(sim, data, roles, method="switch", progress=False, **options), sim


@pytest.fixture(scope="module")
def session(fitted, tmp_path_factory) -> onnxruntime.InferenceSession:
    path = export_onnx(fitted[0], tmp_path_factory.mktemp("onnx") / "model.onnx", check=False)
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def _close(found: np.ndarray, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("rows", [1, 7, 1000])
def test_onnxruntime_equals_torch_for_any_batch(rows: int, fitted, session) -> None:
    model = Exported(fitted[0], 0)
    assert model.names == ["features", "conditions", "category", "uniform", "mask"]
    made = typical_inputs(fitted[0], 0, rows, seed=rows)
    with torch.no_grad():
        expected = model(*(made[name] for name in model.names))
    found = session.run(None, {name: made[name].numpy() for name in model.names})
    for ours, theirs in zip(expected, found, strict=True):
        _close(theirs, ours.numpy(), 1e-9)  # double precision: far better than the promised 1e-5
    assert found[0].dtype == np.float64 and found[3].dtype == np.bool_
    # the comparison means something: features move, and so do the ends of the band
    assert np.abs(found[0] - made["features"].numpy()).max() > 1e-3 and np.abs(found[1] - found[2]).max() > 1e-3


def test_the_graph_is_what_apply_does(fitted, session) -> None:
    correction, sim = fitted
    rows = sim.isel(row=fold_of(sim["event"].values, 2, correction.seed) == 0)
    expected = correction.apply(rows)
    given = correction.inputs(sample_of(rows, correction.roles, correction.categories))
    given["features"] = given.pop("x")
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: given[name].numpy() for name in names})
    for j, name in enumerate(correction.roles.feature_names):
        for values, suffix in zip(found, ("", "_up", "_down"), strict=False):
            _close(values[:, j], expected[f"{name}_corr{suffix}"].values, 1e-4)  # apply computes its flows in float32
    assert (found[3] == expected["out_of_support"].values).mean() > 0.99  # float32 at the edge of the region
    zero = expected["iso_corr"].values == 0
    assert 0.05 < zero.mean() < 0.95 and ((found[0][:, 0] == 0) == zero).all()  # point masses survive exactly


def test_metadata_names_columns_units_and_categories(fitted, tmp_path) -> None:
    path = export_onnx(fitted[0], tmp_path / "m.onnx", fold=1, band=False, opset=17)
    graph = onnx.load(str(path))
    assert [entry.name for entry in graph.graph.output] == ["corrected", "out_of_support"]
    assert graph.opset_import[0].version == 17
    described = json.loads({entry.key: entry.value for entry in graph.metadata_props}["sciflow"])
    assert described["features"] == ["iso", "r9", "es"] and described["units"]["pt"] == "GeV"
    assert described["categories"] == ["EB", "EE"] and described["fold"] == 1 and described["folds"] == 2
    assert Roles.from_dict(described["roles"]) == fitted[0].roles
    assert len(fitted[0].folds[1].flows) == 3  # the correction is as it was
    assert [entry.name for entry in tmp_path.iterdir()] == ["m.onnx"]


@pytest.mark.parametrize(("method", "names"), [("switch", ["features"]), ("conditional", ["features", "noise"])])
def test_only_needed_inputs_are_there(method: str, names: list[str], tmp_path) -> None:
    torch.manual_seed(0)
    correction = Correction(Roles.from_text(PLAIN).to_dict(), method=method, members=0, flow={"transforms": 2, "hidden": (8,)})
    for parameter in correction.parameters():
        parameter.data.add_(0.3 * torch.randn_like(parameter))
    for module in correction.modules():
        if isinstance(module, Preprocessing):
            module.fit(torch.randn(200, module.features))
    correction.eval()
    path = export_onnx(correction, tmp_path / "m.onnx")  # compares with torch itself
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == names
    made = typical_inputs(correction, 0, 50, seed=3)
    with torch.no_grad():
        expected = Exported(correction, 0)(*(made[name] for name in names))
    _close(session.run(None, {name: made[name].numpy() for name in names})[0], expected[0].numpy())


def test_single_precision(fitted, session, tmp_path) -> None:
    path = export_onnx(fitted[0], tmp_path / "single.onnx", precision="float32")
    single = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    made = typical_inputs(fitted[0], 0, 500, seed=9)
    given = {entry.name: made[entry.name].numpy() for entry in single.get_inputs()}
    for single_value, double_value in zip(single.run(None, given)[:3], session.run(None, given), strict=False):
        _close(single_value, double_value, 2e-4)
    with pytest.raises(UserError, match="precision 'half' is not one of float64, float32"):
        export_onnx(fitted[0], tmp_path / "m.onnx", precision="half")


def test_mistakes(fitted, tmp_path, monkeypatch) -> None:
    with pytest.raises(UserError, match="fold 2: the correction has the folds 0 to 1"):
        export_onnx(fitted[0], tmp_path / "m.onnx", fold=2)
    with pytest.raises(UserError, match=r"ends in \.onnx"):
        export_onnx(fitted[0], tmp_path / "m.bin")
    with pytest.raises(UserError, match="does not exist"):
        export_onnx(fitted[0], tmp_path / "none" / "m.onnx")
    monkeypatch.setitem(TOLERANCE, "float64", 0.0)
    with pytest.raises(UserError, match=r"not written: .* differs from torch by"):
        export_onnx(fitted[0], tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
