"""The closure report judges known cases rightly, and is written whole or not at all."""

import json
import re

import numpy as np
import pytest
import xarray as xr
from sciflow_physics.data.roles import Roles
from sciflow_physics.report import certify, closure, measure

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.strict_json import dumps, loads

ROLES = Roles.from_text("""
[category]
column = "type"
[features.iso]
unit = "GeV"
transform = "log"
point_mass = 0.0
[features.width]
present = "category == 'EB'"
[conditions.pt]
unit = "GeV"
transform = "log"
[auxiliary.mass]
unit = "GeV"
""")
FAST = {"bootstrap": 30, "replicates": 100, "folds": 2, "floor_splits": 1, "trees": {"max_iter": 20}, "progress": False}


def rows(seed, events, *, zeros=0.5, scale=1.0, shift=0.0, correlation=0.6):
    """Two rows per event; iso depends on pt and is correlated with width, which exists in EB only."""
    rng = np.random.default_rng(seed)
    count = 2 * events
    pt = 25 + rng.gamma(2.0, 8.0, count)
    category = rng.choice(["EB", "EE"], count, p=[0.7, 0.3])
    common, own = rng.normal(size=(2, count))
    iso = np.where(rng.random(count) < zeros, 0.0, scale * np.exp(common) * (pt / 40) ** 0.3)
    width = correlation * common + np.sqrt(1 - correlation**2) * own + shift
    mass = np.repeat(rng.normal(91, 2.5, events), 2)
    columns = {"iso": iso, "width": np.where(category == "EB", width, 0.0), "pt": pt, "mass": mass}
    variables = {name: ("row", values) for name, values in columns.items()}
    variables |= {"weight": ("row", np.ones(count)), "category": ("row", category)}
    identity = {"event": ("row", np.repeat(np.arange(events), 2)), "id": ("row", np.arange(count))}
    return xr.Dataset(variables, coords=identity)


def corrected(before, iso, width, **more):
    return before.assign(iso_corr=("row", iso), width_corr=("row", width), **{k: ("row", v) for k, v in more.items()})


def truth_for(before, seed=50):
    """Draws from the data's own distribution at the simulation's conditions: a perfect correction."""
    rng = np.random.default_rng(seed)
    count, pt = before.sizes["row"], before["pt"].values
    common, own = rng.normal(size=(2, count))
    iso = np.where(rng.random(count) < 0.5, 0.0, np.exp(common) * (pt / 40) ** 0.3)
    width = np.where(before["category"].values == "EB", 0.6 * common + 0.8 * own, 0.0)
    return corrected(before, iso, width, out_of_support=np.zeros(count, bool))


@pytest.fixture(scope="module")
def simulation():
    return rows(1, 900, zeros=0.8, scale=0.5, shift=0.5, correlation=0.0)


@pytest.fixture(scope="module")
def data():
    return rows(2, 1100)


@pytest.fixture(scope="module")
def perfect(simulation, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("closure")
    return folder, closure(simulation, truth_for(simulation), data, ROLES, folder=folder, title="<b>perfect</b>", **FAST)


def test_a_perfect_correction_passes(perfect):
    """Seeded. Over seeds the false-alarm rate is below 1 %: 5 tests at 5 %, each with 0.01 to spare."""
    _, certificate = perfect
    assert certificate.verdict == "passed", certificate
    names = {test.name for test in certificate.tests}
    assert {"auc_excess", "ks/iso/EB", "ks/iso/EE", "ks/width/EB", "point_mass/iso/EB"} <= names
    assert {"columns_changed", "non_finite"} <= names
    assert "ks/width/EE" not in names  # the feature does not exist there
    assert certificate["out_of_support"].outcome == "reported"


def test_no_correction_fails_and_says_where(simulation, data):
    after = corrected(simulation, simulation["iso"].values, simulation["width"].values)
    certificate = certify(measure(simulation, after, data, ROLES, **FAST))
    failed = {test.name for test in certificate.tests if test.outcome == "failed"}
    assert certificate.verdict == "failed"
    assert {"auc_excess", "ks/iso/EB", "ks/iso/EE", "ks/width/EB", "point_mass/iso/EB", "point_mass/iso/EE"} == failed


def test_right_marginals_with_a_wrong_correlation_fail_on_the_classifier(simulation, data):
    """iso and width each drawn from the truth, but from different events."""
    after = truth_for(simulation)
    after["width_corr"] = truth_for(simulation, seed=51)["width_corr"]
    found = measure(simulation, after, data, ROLES, **FAST)
    assert found.auc_excess[0] > 0.05
    assert all(entry.after.ks < entry.null_ks + 0.01 for entry in found.marginals)
    assert found.correlations["EB"]["largest_after"] > 0.2


def test_altered_kinematics_and_auxiliaries_fail(simulation, data):
    after = truth_for(simulation)
    after["pt"] = ("row", np.nextafter(after["pt"].values, np.inf))
    found = measure(simulation, after.drop_vars("mass"), data, ROLES, **FAST)
    assert {name for name, changed in found.changed.items() if changed} == {"pt", "mass"}
    certificate = certify(found)
    assert certificate["columns_changed"].outcome == "failed"
    assert certificate["columns_changed"].description.endswith(": pt, mass")


def test_values_that_are_not_finite_fail_without_stopping_the_report(simulation, data):
    after = truth_for(simulation)
    after["iso_corr"][3], after["iso_corr"][4] = np.nan, np.inf
    certificate = certify(measure(simulation, after, data, ROLES, **FAST))
    assert certificate["non_finite"].value == 2 and certificate.verdict == "failed"


def test_absent_rows_may_hold_anything(simulation, data):
    after = truth_for(simulation)
    after["width_corr"] = after["width_corr"].where(simulation["category"] == "EB")
    assert sum(measure(simulation, after, data, ROLES, **FAST).non_finite.values()) == 0


def test_kinematic_weights_enter_both_comparisons(data):
    """A simulation with softer pt: the weights that undo it bring the conditions-only AUC to 1/2."""
    soft = rows(3, 1500)
    soft["pt"] = ("row", 25 + (soft["pt"].values - 25) * 0.6)
    after = corrected(soft, soft["iso"].values, soft["width"].values)
    plain = measure(soft, after, data, ROLES, **FAST)
    x = soft["pt"].values - 25
    ratio = 0.6**2 * np.exp(-x / 8 + x / 4.8)  # gamma(2, 8) over gamma(2, 4.8)
    weighted = measure(soft, after.assign(weight_kinematic=("row", np.minimum(ratio, 20))), data, ROLES, **FAST)
    assert plain.auc["conditions only"][0] > 0.6
    assert weighted.auc["conditions only"][0] < 0.54
    assert weighted.effective_rows["simulation"] < plain.effective_rows["simulation"]


def test_signed_weights_give_finite_numbers(simulation, data, tmp_path):
    signed = data.copy(deep=True)
    signed["weight"] = ("row", np.where(np.repeat(np.random.default_rng(0).random(1100) < 0.15, 2), -1.0, 1.0))
    certificate = closure(simulation, truth_for(simulation), signed, ROLES, folder=tmp_path, **FAST)
    content = json.loads((tmp_path / "measurements.json").read_text())
    assert content["negative_fraction"]["data"] == pytest.approx(0.15, abs=0.03)
    assert "$float" not in json.dumps(content["marginals"]) and "$float" not in json.dumps(content["auc"])
    assert np.isfinite([test.value for test in certificate.tests]).all()


def _renamed(dataset, count):
    """The first rows are of a third category."""
    names = dataset["category"].values.astype("<U4")
    names[:count] = "gap"
    return dataset.assign(category=("row", names))


def test_a_category_that_the_simulation_lacks_is_not_passed_over(simulation, data):
    """A perfect correction of the barrel says nothing about the endcaps of the data."""
    barrel = simulation.isel(row=simulation["category"].values == "EB")
    found = measure(barrel, truth_for(barrel), data, ROLES, **FAST)
    assert found.not_compared == [("iso", "EE")]
    certificate = certify(found)
    assert certificate["ks/iso/EE"].outcome == "not evaluated" and certificate.verdict != "passed"


def test_a_handful_of_rows_of_a_category_is_named_not_compared(simulation, data, tmp_path):
    sim, real = _renamed(simulation, 3), _renamed(data, 3)
    certificate = closure(sim, truth_for(sim), real, ROLES, folder=tmp_path, **FAST)
    assert certificate["ks/iso/gap"].outcome == "not evaluated" and certificate.verdict != "passed"
    assert {"ks", "point_mass"} <= set(certificate.figures)


@pytest.mark.parametrize(("sim_rows", "data_rows"), [(2, 2200), (90, 2200), (1800, 12), (1800, 180)])
def test_too_few_events_are_refused(simulation, data, sim_rows, data_rows):
    sim, real = simulation.isel(row=slice(sim_rows)), data.isel(row=slice(data_rows))
    with pytest.raises(UserError, match=r"has \d+ events, worth \d+ of equal weight: 2 folds need at least (50|100)"):
        measure(sim, truth_for(sim), real, ROLES, **FAST)


def test_the_page_is_self_contained_and_escaped(perfect):
    folder, certificate = perfect
    page = (folder / "closure.html").read_text()
    assert "<b>perfect</b>" not in page and "&lt;b&gt;perfect&lt;/b&gt;" in page
    sources = re.findall(r'(?:src|href)="([^"]*)"', page)
    assert sources and all(source.startswith("data:image/png;base64,") for source in sources)
    assert len(sources) == len(certificate.figures) == len(list(folder.glob("*.png")))
    assert f"{certificate['auc_excess'].value:+.4f}" in page
    for name in ("feature_iso", "auxiliary_mass", "correlation_EB", "profile_width_pt", "ks", "point_mass", "auc"):
        assert (folder / certificate.figures[name].path).is_file()


def test_the_record_reads_back_and_names_what_it_rests_on(perfect):
    folder, certificate = perfect
    assert Certificate.read(folder / "certificate.json") == certificate
    assert {"seed", "bootstrap", "rows", "events", "hashes", "versions"} <= set(certificate.context)
    assert len({*certificate.context["hashes"].values()}) == 3
    assert not list(folder.glob("*.tmp-*"))


def test_the_same_seed_gives_the_same_numbers(simulation, data):
    after = truth_for(simulation)
    first, second = (dumps(measure(simulation, after, data, ROLES, **FAST).to_dict()) for _ in range(2))
    assert first == second
    other = measure(simulation, after, data, ROLES, **FAST, seed=1).to_dict()
    assert other["auc"] != loads(first)["auc"]


def test_an_interrupted_report_leaves_no_verdict(simulation, data, tmp_path, monkeypatch):
    for old in ("certificate.json", "closure.html", "measurements.json"):
        (tmp_path / old).write_text("of an older report")
    calls = []

    def interrupted(drawing, path):
        calls.append(path)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return path

    monkeypatch.setattr("sciflow_physics.report.assemble.write_figure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        closure(simulation, truth_for(simulation), data, ROLES, folder=tmp_path, **FAST)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda b, a, d: (b, a.isel(row=slice(4)), d), "the corrected sample has 4 rows, the simulation 1800"),
        (lambda b, a, d: (b, a.drop_vars("iso_corr"), d), "the corrected sample lacks the columns iso_corr"),
        (lambda b, a, d: (b, a, d.assign(weight=-d["weight"])), "the weights of the data .2200 rows. sum to -2200"),
        (lambda b, a, d: (b.assign(iso=b["iso"] * np.nan), a, d), "the simulation has 1800 non-finite values in column 'iso'"),
    ],
)
def test_bad_input_says_what_is_wrong(simulation, data, tmp_path, spoil, message):
    before, after, real = spoil(simulation, truth_for(simulation), data)
    with pytest.raises(UserError, match=message):
        closure(before, after, real, ROLES, folder=tmp_path / "new", **FAST)
    assert not (tmp_path / "new").exists()


def test_a_folder_that_cannot_be_made_is_a_user_error(simulation, data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="the report cannot be written"):
        closure(simulation, truth_for(simulation), data, ROLES, folder=tmp_path / "file" / "report", **FAST)
