"""Files as rows: layouts, identities, selection, and what is refused."""

from __future__ import annotations

import awkward as ak
import numpy as np
import pandas as pd
import pytest
import uproot
from sciflow_physics.data import count, identity, iterate, read
from sciflow_physics.data.roles import Roles

from sciflow.errors import UserError

FLAT = Roles.from_text("[features.x]\nunit = 'GeV'\n[conditions.pt]\n[event]\nid = ['run', 'event']")


def _flat(n: int = 20, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame({"run": 1, "event": np.arange(n), "x": rng.normal(size=n), "pt": rng.exponential(size=n)})


def test_flat_rows(tmp_path) -> None:
    frame = _flat()
    frame.to_csv(tmp_path / "a.csv", index=False)
    rows = read(tmp_path / "a.csv", FLAT)
    np.testing.assert_array_equal(rows["x"], frame["x"])
    assert rows["x"].dtype == np.float64 and rows["x"].attrs["units"] == "GeV"
    np.testing.assert_array_equal(rows["event"], (1 << 40) + frame["event"])
    assert rows["weight"].values.tolist() == [1.0] * 20 and "category" not in rows
    assert len(set(rows["id"].values.tolist())) == 20 and (rows["id"] >= 0).all()
    assert count(tmp_path / "a.csv") == 20
    part = read(tmp_path / "a.csv", FLAT, entries=(5, 9))
    assert part.identical(rows.isel(row=slice(5, 9)))


def test_suffixed_columns_become_rows(tmp_path) -> None:
    frame = pd.DataFrame(
        {"e": [7, 8, 9], "pt1": [1.0, 2, 3], "pt2": [4.0, 5, 6], "x1": [10.0, 20, 30], "x2": [40.0, 50, 60], "m": [1.0, 2, 3]}
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_text(
        """
        selection = "pt1 + pt2 > 6"
        [derived]
        ratio = { expression = "x / (pt * m)", unit = "1/GeV" }
        total = { expression = "pt1 + pt2", unit = "GeV" }
        [objects]
        suffixes = ["1", "2"]
        [event]
        id = ["e"]
        [features.x]
        [conditions.pt]
        [auxiliary.m]
        [auxiliary.ratio]
        [auxiliary.total]
        """
    )
    rows = read(tmp_path / "a.csv", roles)
    assert rows["x"].values.tolist() == [20, 50, 30, 60]
    assert rows["event"].values.tolist() == [8, 8, 9, 9]
    assert rows["entry"].values.tolist() == [1, 1, 2, 2] and rows["object"].values.tolist() == [0, 1, 0, 1]
    assert rows["m"].values.tolist() == [2, 2, 3, 3]
    assert rows["ratio"].values.tolist() == [20 / 4, 50 / 10, 30 / 9, 60 / 18]
    assert rows["total"].values.tolist() == [7, 7, 9, 9] and rows["total"].attrs["units"] == "GeV"


def _jagged_file(path) -> None:
    with uproot.recreate(path) as file:
        lists = ak.Array([[1.0, 2.0, 3.0], [], [4.0], [5.0, 6.0]])
        file.mktree("Events", {"Mu": "var * {pt: float64, iso: float32}", "best": "int32", "met": "float32"})
        muons = ak.zip({"pt": lists, "iso": ak.values_astype(lists / 10, "float32")})
        best, met = np.array([2, -1, 0, 1], np.int32), np.array([1, 2, 3, 4], np.float32)
        file["Events"].extend({"Mu": muons, "best": best, "met": met})


@pytest.mark.parametrize(
    ("objects", "entries", "positions"),
    [
        ("jagged = true", [0, 0, 0, 2, 3, 3], [0, 1, 2, 0, 0, 1]),
        ("jagged = true\nindex = 'best'", [0, 2, 3], [2, 0, 1]),
        ("jagged = true\nindex = 'where(met > 2, 0, -1)'", [2, 3], [0, 0]),
        ("jagged = true\nindex = 'argmax(Mu_pt)'", [0, 2, 3], [2, 0, 1]),
        ("jagged = true\nindex = 'argmin(Mu_pt)'", [0, 2, 3], [0, 0, 0]),
        ("jagged = true\nselection = 'Mu_pt * met > 3'", [2, 3, 3], [0, 0, 1]),
    ],
)
def test_jagged_branches(objects: str, entries: list[int], positions: list[int], tmp_path) -> None:
    _jagged_file(tmp_path / "a.root")
    roles = Roles.from_text(
        f"[objects]\n{objects}\n[features.iso]\ncolumn = 'Mu_iso'\n[conditions.met]\n[auxiliary.pt]\ncolumn = 'Mu_pt'"
    )
    whole = read(tmp_path / "a.root", roles)
    assert whole["entry"].values.tolist() == entries and whole["object"].values.tolist() == positions
    start = {0: 1.0, 2: 4.0, 3: 5.0}
    assert whole["pt"].values.tolist() == [start[e] + p for e, p in zip(entries, positions, strict=True)]
    np.testing.assert_allclose(whole["iso"], whole["pt"] / 10, rtol=1e-7)
    assert whole["met"].values.tolist() == [e + 1 for e in entries]
    number = dict(zip(entries, whole["event"].values.tolist(), strict=True))  # no event id: the values of the entry
    assert whole["event"].values.tolist() == [number[entry] for entry in entries]
    assert len(set(number.values())) == len(set(entries)) and max(number.values()) < 0
    import xarray as xr

    assert xr.concat(list(iterate(tmp_path / "a.root", roles, 1)), "row").identical(whole)


@pytest.mark.parametrize(
    ("tables", "words"),
    [
        ("[objects]\njagged = true\nindex = 'met'", ["index 'met' is 2", "entry 1", "0 objects", "negative means none"]),
        ("[objects]\njagged = true\nindex = 'Mu_pt'", ["index", "one number per event"]),
        ("[objects]\nsuffixes = ['_a']", ["'Mu_iso' holds a list per event", "jagged = true"]),
        ("", ["'Mu_iso' holds a list per event", "jagged = true"]),
        ("selection = 'Mu_pt > 1'\n[objects]\njagged = true", ["depends on the object", "[objects] selection"]),
    ],
)
def test_jagged_mistakes(tables: str, words: list[str], tmp_path) -> None:
    _jagged_file(tmp_path / "a.root")
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.root", Roles.from_text(f"{tables}\n[features.iso]\ncolumn = 'Mu_iso'\n[conditions.met]"))
    for word in words:
        assert word in str(caught.value)


def test_a_skim_without_event_numbers_keeps_its_events(tmp_path) -> None:
    frame = _flat(200)[["x", "pt"]]
    roles = Roles.from_text("[features.x]\n[conditions.pt]")
    frame.to_parquet(tmp_path / "all.parquet")
    frame.iloc[50:90:3].to_parquet(tmp_path / "skim.parquet")
    everything, skim = read(tmp_path / "all.parquet", roles), read(tmp_path / "skim.parquet", roles)
    assert skim["event"].values.tolist() == everything["event"].values[50:90:3].tolist()
    assert len(np.unique(everything["event"])) == len(np.unique(everything["id"])) == 200
    # two copies of an event are one event, but two rows with random numbers of their own
    pd.concat([frame.iloc[:3], frame.iloc[:3]]).to_csv(tmp_path / "twice.csv", index=False)
    twice = read(tmp_path / "twice.csv", roles)
    assert twice["event"].values[:3].tolist() == twice["event"].values[3:].tolist() == everything["event"].values[:3].tolist()
    assert len(np.unique(twice["id"])) == 6


def test_ids_do_not_depend_on_file_order_or_chunks(tmp_path) -> None:
    frame = _flat(100)
    frame["event"] //= 2  # two objects of an event in two rows of the file: legal
    frame.to_csv(tmp_path / "a.csv", index=False)
    order = np.random.default_rng(3).permutation(100)
    frame.iloc[order].to_csv(tmp_path / "b.csv", index=False)
    a, b = read(tmp_path / "a.csv", FLAT), read(tmp_path / "b.csv", FLAT)
    np.testing.assert_array_equal(a["id"].values[order], b["id"].values)
    np.testing.assert_array_equal(a["event"].values[order], b["event"].values)
    assert len(set(a["id"].values.tolist())) == 100 and len(set(a["event"].values.tolist())) == 50
    for size in (1, 7, 33, 1000):
        parts = list(iterate(tmp_path / "a.csv", FLAT, size))
        assert max(part.sizes["row"] for part in parts) <= size
        np.testing.assert_array_equal(np.concatenate([part["id"] for part in parts]), a["id"])
        np.testing.assert_array_equal(np.concatenate([part["x"] for part in parts]), a["x"])


def test_an_object_number_column(tmp_path) -> None:
    frame = _flat(6)
    frame["event"], frame["k"] = frame["event"] // 2, [0, 1] * 3
    frame.to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_dict({**FLAT.to_dict(), "event": {"id": ["run", "event"], "object": "k"}})
    before = read(tmp_path / "a.csv", roles)["id"].values
    frame["x"] += 1
    frame.to_csv(tmp_path / "a.csv", index=False)
    np.testing.assert_array_equal(read(tmp_path / "a.csv", roles)["id"].values, before)


def test_event_numbers_are_exact_where_they_fit() -> None:
    run = np.array([1, 1, 2**23 - 1, 2**23, 1, -1])
    event = np.array([5, 2**40 - 1, 7, 7, 2**40, 7])
    number = identity.event_number([run, event])
    assert number[:3].tolist() == [(1 << 40) + 5, (2 << 40) - 1, ((2**23 - 1) << 40) + 7]
    assert (number[3:] < 0).all() and len(set(number.tolist())) == 6
    # decided row by row: neighbours do not matter
    alone = [identity.event_number([run[i : i + 1], event[i : i + 1]])[0] for i in range(6)]
    assert number.tolist() == alone
    assert identity.event_number([np.array([2**63 - 1])]).tolist() == [2**63 - 1]
    assert (identity.event_number([np.arange(3)] * 4) < 0).all()


def test_hashes_are_uniform() -> None:
    """Of 64 bins over 200,000 consecutive ids; chi-square with 63 degrees of freedom, false alarm 1e-6 (seedless)."""
    value = identity.row_identity(np.arange(200_000), np.zeros(200_000, np.int64))
    assert len(np.unique(value)) == 200_000
    for bins in (value >> 57, value & 63):
        seen = np.bincount(bins.astype(int), minlength=64)
        assert ((seen - 3125) ** 2 / 3125).sum() < 131.0


@pytest.mark.parametrize(("bad", "text"), [(np.nan, ""), (np.inf, "inf"), (-np.inf, "-inf")])
def test_nan_and_infinity_name_file_column_count_and_first_entry(bad: float, text: str, tmp_path) -> None:
    frame = _flat(20)
    frame["x"] = frame["x"].astype(object)
    frame.loc[[7, 13], "x"] = text
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"a\.csv: column 'x' has 2 NaN or infinite values, the first at entry 7"):
        read(tmp_path / "a.csv", FLAT)
    with pytest.raises(UserError, match=r"1 NaN or infinite values, the first at entry 13"):
        list(iterate(tmp_path / "a.csv", Roles.from_dict({**FLAT.to_dict(), "selection": "event > 9"}), 5))
    # rows that fail the selection may hold anything
    kept = read(tmp_path / "a.csv", Roles.from_dict({**FLAT.to_dict(), "selection": "event > 13"}))
    assert kept.sizes["row"] == 6


def test_a_feature_may_be_absent_where_its_roles_say_so(tmp_path) -> None:
    frame = pd.DataFrame({"type": ["EB", "EE", "EB"], "x": [1.0, 2.0, 3.0], "es": [np.nan, 5.0, np.nan]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_text("[category]\ncolumn = 'type'\n[features.x]\n[features.es]\npresent = \"category == 'EE'\"")
    rows = read(tmp_path / "a.csv", roles)
    assert rows["es"].values.tolist() == [0.0, 5.0, 0.0]
    assert roles.mask(rows).tolist() == [[True, False], [True, True], [True, False]]
    frame.loc[1, "es"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=r"column 'es' has 1 NaN or infinite values, the first at entry 1"):
        read(tmp_path / "a.csv", roles)


def test_a_selection_that_loses_events_to_nan_says_so(tmp_path, caplog) -> None:
    frame = _flat(5)
    frame.loc[2, "pt"] = np.nan
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read(tmp_path / "a.csv", Roles.from_dict({**FLAT.to_dict(), "selection": "pt > 0"})).sizes["row"] == 4
    assert "1 entries fail the selection with a NaN" in caplog.text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": ["a"] * 5}, ["column 'x' holds text ('a' at entry 0)"]),
        ({"event": [1.5] * 5}, ["column 'event' must hold whole numbers, it is 1.5 at entry 0"]),
        ({"event": ["e"] * 5}, ["column 'event' must hold whole numbers"]),
    ],
)
def test_wrong_types(change: dict, words: list[str], tmp_path) -> None:
    _flat(5).assign(**change).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError) as caught:
        read(tmp_path / "a.csv", FLAT)
    for word in words:
        assert word in str(caught.value)


def test_foreign_categories_are_refused(tmp_path) -> None:
    _flat(4).assign(type=["EB", "EX", "EB", "EX"]).to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_dict({**FLAT.to_dict(), "category": {"column": "type", "values": ["EB", "EE"]}})
    with pytest.raises(UserError, match=r"column 'type' is 'EX' at entry 1 \(2 such rows\).*EB, EE"):
        read(tmp_path / "a.csv", roles)
    _flat(4).assign(type=[1, 0, 1, 0]).to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_dict({**FLAT.to_dict(), "category": {"column": "type"}})
    assert read(tmp_path / "a.csv", roles)["category"].values.tolist() == ["1", "0", "1", "0"]


def test_nothing_selected(tmp_path) -> None:
    _flat(5).to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_dict({**FLAT.to_dict(), "selection": "pt > 1e9"})
    with pytest.raises(UserError, match=r"none of its 5 entries pass the selection 'pt > 1e9'"):
        read(tmp_path / "a.csv", roles)
    with pytest.raises(UserError, match=r"none of its 5 entries"):
        list(iterate(tmp_path / "a.csv", roles, 2))
    with pytest.raises(UserError, match=r"entries 3 to 9 are not within 0 to 5"):
        read(tmp_path / "a.csv", FLAT, entries=(3, 9))


@pytest.mark.data
def test_the_real_electrons(science_data) -> None:
    roles = Roles.preset("zee")
    frame = pd.read_csv(science_data / "physics" / "Zee_Run2011A_early.csv")
    mass = np.sqrt(2 * frame.pt1 * frame.pt2 * (np.cosh(frame.eta1 - frame.eta2) - np.cos(frame.phi1 - frame.phi2)))
    chosen = frame[(mass > 80) & (mass < 100) & (frame.Q1 * frame.Q2 < 0)]
    rows = read(science_data / "physics" / "Zee_Run2011A_early.csv", roles)
    assert rows.sizes["row"] == 2 * len(chosen) == 9008
    np.testing.assert_array_equal(rows["isoEcal"].values.reshape(-1, 2), chosen[["isoEcal1", "isoEcal2"]])
    np.testing.assert_array_equal(rows["category"].values.reshape(-1, 2), chosen[["type1", "type2"]])
    assert len(set(rows["event"].values.tolist())) == len(chosen) and len(set(rows["id"].values.tolist())) == 9008
    simulation = read(science_data / "physics" / "Zee_sim_pythia8_7TeV.csv", roles)
    assert simulation.sizes["row"] == 10814
    assert len(np.unique(simulation["event"])) == len(np.unique(simulation["entry"]))


@pytest.mark.data
def test_real_root_files(science_data) -> None:
    muons = Roles.from_text(
        "selection = 'M > 60'\n[objects]\nsuffixes = ['1', '2']\n[event]\nid = ['Run', 'Event']\n[category]\ncolumn = 'Type'\n"
        "[features.eta]\n[conditions.pt]\nunit = 'GeV'"
    )
    rows = read(science_data / "physics" / "uproot-Zmumu.root", muons)
    tree = uproot.open(science_data / "physics" / "uproot-Zmumu.root")["events"]
    passed = tree["M"].array(library="np") > 60
    np.testing.assert_array_equal(rows["pt"].values[1::2], tree["pt2"].array(library="np")[passed])
    assert set(rows["category"].values) <= {"GT", "GG", "TT"}
    jagged = Roles.from_text(
        "[objects]\njagged = true\nindex = 'argmax(Muon_E)'\n[weight]\ncolumn = 'EventWeight'\n"
        "[features.iso]\ncolumn = 'Muon_Iso'"
    )
    rows = read(science_data / "physics" / "uproot-HZZ.root", jagged)
    tree = uproot.open(science_data / "physics" / "uproot-HZZ.root")["events"].arrays(["Muon_Iso", "Muon_E", "EventWeight"])
    tree = tree[ak.num(tree.Muon_E) > 0]
    best = ak.firsts(tree.Muon_Iso[ak.argsort(tree.Muon_E, ascending=False)])
    np.testing.assert_array_equal(rows["iso"], ak.to_numpy(best).astype(float))
    np.testing.assert_array_equal(rows["weight"], ak.to_numpy(tree.EventWeight).astype(float))
