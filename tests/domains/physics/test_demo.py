"""The demo's pipeline end to end on a tiny pair; the embedded pair is complete and in step with its roles."""

import json

import numpy as np
import pytest
from sciflow_physics import demo, truth
from sciflow_physics.data import read
from sciflow_physics.data.roles import Roles

import sciflow
from sciflow.certificate import Certificate
from sciflow.errors import UserError

QUICK = {
    "fit": {"members": 0, "epochs": 1, "hidden": (8, 8), "transforms": 2, "progress": False},
    "report": {"bootstrap": 5, "replicates": 20, "folds": 2, "trees": {"max_iter": 5}, "progress": False},
}


def written(kind, folder, rows, seed):
    frame = truth.draw(kind, rows, seed).to_dataframe().rename(columns={"category": "region"})
    path = folder / f"{kind}.parquet"
    frame.assign(number=np.arange(rows)).to_parquet(path)
    return path


def test_pipeline_writes_model_ntuple_and_report(tmp_path):
    roles = truth.roles()
    sim, data = written("sim", tmp_path, 500, 1), written("data", tmp_path, 500, 2)
    certificate, files = demo.pipeline(sim, data, roles, tmp_path / "out", **QUICK)
    names = {path.relative_to(tmp_path / "out").as_posix() for path in files}
    assert {"corrected.root", "correction/weights.safetensors", "correction/config.json", "report/closure.html"} <= names
    assert all(path.is_file() and path.stat().st_size for path in files)
    assert Certificate.read(tmp_path / "out" / "report" / "certificate.json") == certificate
    # model and ntuple are what the report speaks about
    correction = sciflow.load(tmp_path / "out" / "correction", trust=("sciflow_physics",))
    after = correction.apply(read(sim, roles))
    ntuple = read(tmp_path / "out" / "corrected.root", roles)
    np.testing.assert_array_equal(ntuple["pt"].values, after["pt"].values)
    import uproot

    with uproot.open(tmp_path / "out" / "corrected.root") as file:
        tree = next(value for value in file.values() if hasattr(value, "num_entries") and value.num_entries == 500)
        np.testing.assert_allclose(tree["width_corr"].array(library="np"), after["width_corr"].values, rtol=1e-6)


def test_a_missing_embedded_sample_says_so(monkeypatch):
    monkeypatch.setattr(demo, "SIMULATION", "nowhere.parquet")
    with pytest.raises(UserError, match=r"nowhere.parquet: missing from this installation"):
        demo.pair()


def test_embedded_pair_is_readable():
    simulation, data, roles = demo.pair()
    chosen = Roles.from_file(roles)
    assert sum(path.stat().st_size for path in (simulation, data)) < 3_000_000
    for path in (simulation, data):
        rows = read(path, chosen)
        assert 2000 < rows.sizes["row"] < 100_000
        assert all(np.isfinite(rows[name].values).all() for name in chosen.feature_names)


@pytest.mark.slow
def test_the_whole_demo_passes_its_own_tests(tmp_path):
    """About a minute on two cores. The verdict is seeded."""
    files = demo.run(tmp_path)
    content = json.loads((tmp_path / "report" / "certificate.json").read_text())
    assert content["verdict"] == "passed", [test for test in content["tests"] if test["outcome"] == "failed"]
    assert len(files) > 10
