"""Correcting files: layouts folded back, parts of a whole, originals untouched, nothing half-written."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
import uproot
import xarray as xr
from sciflow_physics.data.formats import open_source
from sciflow_physics.data.roles import Roles
from sciflow_physics.writing.streaming import apply_file, part

from sciflow.errors import UserError

ROLES = Roles.from_text(
    """
    selection = "m > 1 and Q1*Q2 < 0"
    [derived]
    m = { expression = "pt1 + pt2" }
    [objects]
    suffixes = ["1", "2"]
    [event]
    id = ["event"]
    [category]
    column = "type"
    [features.x]
    [features.es]
    present = "category == 'EE'"
    [conditions.pt]
    """
)


class Doubles:
    """x -> 2 x, flagged above 1; a stand-in for a trained correction."""

    def __init__(self, roles: Roles = ROLES, fail_after: int = 10**9, seconds: float = 0.0) -> None:
        self.roles, self.left, self.seconds = roles, fail_after, seconds

    def apply(self, rows: xr.Dataset) -> xr.Dataset:
        time.sleep(self.seconds)
        self.left -= 1
        if self.left < 0:
            raise RuntimeError("broken on purpose")
        added = {}
        for name in self.roles.feature_names:
            for suffix, shift in (("", 0.0), ("_up", 1.0), ("_down", -1.0)):
                added[f"{name}_corr{suffix}"] = ("row", 2 * rows[name].values + shift)
        added["out_of_support"] = ("row", rows[self.roles.feature_names[0]].values > 1)
        added["weight_kinematic"] = ("row", np.full(rows.sizes["row"], 0.5))
        return rows.assign(added)


def _frame(n: int = 500) -> pd.DataFrame:
    rng = np.random.default_rng(2)
    frame = pd.DataFrame({"event": np.arange(n) + 2**40})
    for s in "12":
        frame[f"pt{s}"] = rng.exponential(size=n)
        frame[f"Q{s}"] = rng.choice([-1, 1], n)
        frame[f"type{s}"] = rng.choice(["EB", "EE"], n)
        frame[f"x{s}"] = rng.normal(size=n)
        frame[f"es{s}"] = np.where(frame[f"type{s}"] == "EE", rng.normal(size=n), -99.0)
    return frame


def _write(frame: pd.DataFrame, path: Path) -> Path:
    columns = {name: frame[name].to_numpy() for name in frame}
    if path.suffix == ".csv":
        frame.to_csv(path, index=False)
    elif path.suffix == ".parquet":
        frame.to_parquet(path, row_group_size=97)
    elif path.suffix == ".root":
        with uproot.recreate(path) as file:
            text = {name: ak.Array(c.tolist()) if name.startswith("type") else c for name, c in columns.items()}
            file.mktree("events", {name: "string" if name.startswith("type") else c.dtype for name, c in columns.items()})
            file["events"].extend(text)
    else:
        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file[f"tree/{name}"] = column.astype("S") if name.startswith("type") else column
    return path


def _columns(path: Path, tree: str | None = None) -> dict:
    with open_source(path, tree) as source:
        return next(source.chunks(source.names, 0, source.entries, source.entries))[1]


def _check(new: dict, frame: pd.DataFrame) -> None:
    good = ((frame.pt1 + frame.pt2 > 1) & (frame.Q1 * frame.Q2 < 0)).to_numpy()
    assert 50 < good.sum() < 250
    for s in "12":
        x, es, ee = frame[f"x{s}"], frame[f"es{s}"], frame[f"type{s}"] == "EE"
        np.testing.assert_array_equal(new[f"corrected{s}"], good)
        np.testing.assert_array_equal(new[f"x{s}_corr"], np.where(good, 2 * x, x))
        np.testing.assert_array_equal(new[f"x{s}_corr_up"], np.where(good, 2 * x + 1, x))
        np.testing.assert_array_equal(new[f"es{s}_corr"], np.where(good & ee, 2 * es, es))
        np.testing.assert_array_equal(new[f"out_of_support{s}"], good & (x > 1))
        np.testing.assert_array_equal(new[f"weight_kinematic{s}"], np.where(good, 0.5, 1.0))


@pytest.mark.parametrize("suffix", ["csv", "parquet", "root", "h5"])
@pytest.mark.parametrize("target", ["csv", "parquet", "root", "h5"])
def test_copies_keep_every_original_bit_and_add_columns(suffix: str, target: str, tmp_path) -> None:
    frame = _frame()
    source = _write(frame, tmp_path / f"in.{suffix}")
    done = apply_file(Doubles(), source, tmp_path / f"out.{target}", ROLES, mode="copy", rows_per_chunk=64)
    assert (done.entries, done.mode) == (500, "copy") and "corrected rows in 500 entries" in str(done)
    before, after = _columns(source), _columns(tmp_path / f"out.{target}")
    assert set(after) - set(before) == {
        *(f"{f}{s}_corr{k}" for f in ("x", "es") for s in "12" for k in ("", "_up", "_down")),
        *(f"{name}{s}" for name in ("corrected", "out_of_support", "weight_kinematic") for s in "12"),
    }
    for name, column in before.items():
        np.testing.assert_array_equal(after[name], column)
        if "csv" not in (suffix, target):
            assert after[name].dtype == column.dtype
    _check(after, frame)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted({f"in.{suffix}", f"out.{target}"})


def test_csv_lines_are_kept_as_they_are(tmp_path) -> None:
    (tmp_path / "a.csv").write_text('x,note\r\n1.50,"a,b"\r\n+2e0,c\r\n')
    roles = Roles.from_text("[features.x]")
    apply_file(Doubles(roles), tmp_path / "a.csv", tmp_path / "b.csv", roles)
    lines = (tmp_path / "b.csv").read_text().splitlines()
    assert lines[0] == "x,note,x_corr,x_corr_up,x_corr_down,out_of_support,weight_kinematic,corrected"
    assert lines[1:] == ['1.50,"a,b",3.0,4.0,2.0,1,0.5,1', "+2e0,c,4.0,5.0,3.0,1,0.5,1"]


def test_friend_tree_has_length_and_order_of_the_input(tmp_path) -> None:
    frame = _frame()
    source = _write(frame, tmp_path / "in.root")
    done = apply_file(Doubles(), source, tmp_path / "friend.root", ROLES, rows_per_chunk=70, provenance={"model": "abc"})
    assert done.mode == "friend"
    with uproot.open(tmp_path / "friend.root") as file:
        assert file["corr"].num_entries == 500
        assert '"model": "abc"' in str(file["sciflow"])
        _check(file["corr"].arrays(library="np"), frame)


def test_in_place_adds_branches_and_protects_the_original(tmp_path) -> None:
    frame = _frame()
    source = _write(frame, tmp_path / "in.root")
    content = source.read_bytes()
    with pytest.raises(RuntimeError, match="on purpose"):
        apply_file(Doubles(fail_after=2), source, source, ROLES, mode="in-place", rows_per_chunk=100)
    assert source.read_bytes() == content and [entry.name for entry in tmp_path.iterdir()] == ["in.root"]
    before = _columns(source)
    apply_file(Doubles(), source, source, ROLES, mode="in-place", rows_per_chunk=100)
    after = _columns(source)
    for name, column in before.items():
        np.testing.assert_array_equal(after[name], column)
    _check(after, frame)
    with pytest.raises(UserError, match=r"already has the column 'x1_corr'"):
        apply_file(Doubles(), source, source, ROLES, mode="in-place")


def test_in_place_refuses_early_what_uproot_cannot_do(tmp_path) -> None:
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("events", {"x": "float64"})
        for _ in range(3):
            file["events"].extend({"x": np.arange(4.0)})
    roles = Roles.from_text("[features.x]")
    with pytest.raises(UserError, match=r"a\.root: uproot cannot add branches .* write a friend tree"):
        apply_file(Doubles(roles, fail_after=0), tmp_path / "a.root", tmp_path / "b.root", roles, mode="in-place")
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.root"]


@pytest.mark.parametrize("target", ["friend.root", "copy.parquet", "copy.root"])
@pytest.mark.parametrize("index", ["", "index = 'best'"])
def test_lists_per_event_come_back_as_lists(target: str, index: str, tmp_path) -> None:
    counts = np.random.default_rng(0).integers(0, 4, 50)
    values = ak.unflatten(np.arange(counts.sum()) / 10, counts)
    with uproot.recreate(tmp_path / "a.root") as file:
        file.mktree("t", {"Ph": "var * {iso: float64, pt: float64}", "Jet_e": "var * float64", "best": "int32"})
        file["t"].extend(
            {"Ph": ak.zip({"iso": values, "pt": values}), "Jet_e": values[::-1], "best": (counts - 1).astype(np.int32)}
        )
    roles = Roles.from_text(f"[objects]\njagged = true\nselection = 'Ph_iso > 1'\n{index}\n[features.iso]\ncolumn = 'Ph_iso'")
    mode = "friend" if target.startswith("friend") else "copy"
    apply_file(Doubles(roles), tmp_path / "a.root", tmp_path / target, roles, mode=mode, rows_per_chunk=7)
    new = _columns(tmp_path / target)
    chosen = values > 1
    if index:
        chosen = chosen & (ak.local_index(values) == counts - 1)
    assert ak.array_equal(new["corrected"], chosen)
    assert ak.array_equal(new["Ph_iso_corr"], ak.where(chosen, 2 * values, values))
    assert ak.array_equal(new["Ph_iso_corr_up"], ak.where(chosen, 2 * values + 1, values))
    if mode == "copy":
        assert ak.array_equal(new["Ph_iso"], values) and ak.array_equal(new["Jet_e"], values[::-1])
        assert new["best"].tolist() == (counts - 1).tolist() and new["nPh"].tolist() == counts.tolist()
    for ending, kind in (("csv", "CSV"), ("h5", "HDF5")):
        with pytest.raises(UserError, match=rf"{kind} cannot hold lists per event .*write ROOT or parquet"):
            apply_file(Doubles(roles), tmp_path / "a.root", tmp_path / f"b.{ending}", roles)
        assert not (tmp_path / f"b.{ending}").exists()


@pytest.mark.parametrize("target", ["root", "parquet", "csv", "h5"])
def test_parts_one_after_another_are_the_whole(target: str, tmp_path) -> None:
    frame = _frame(203)
    source = _write(frame, tmp_path / "in.root")
    apply_file(Doubles(), source, tmp_path / f"whole.{target}", ROLES, rows_per_chunk=50)
    whole = _columns(tmp_path / f"whole.{target}")
    parts = []
    for i in range(1, 8):
        apply_file(Doubles(), source, tmp_path / f"part{i}.{target}", ROLES, chunk=(i, 7), rows_per_chunk=20)
        parts.append(_columns(tmp_path / f"part{i}.{target}"))
    for name, column in whole.items():
        together = np.concatenate([part[name] for part in parts])
        assert together.tobytes() == column.tobytes() and together.dtype == column.dtype


def test_parts_without_event_numbers_are_numbered_by_the_whole_file(tmp_path) -> None:
    """Entries seed the dequantisation where nothing else does: part 2 must not start from 0."""
    seen: list[int] = []

    class Spy(Doubles):
        def apply(self, rows: xr.Dataset) -> xr.Dataset:
            seen.extend(rows["entry"].values.tolist())
            return super().apply(rows)

    roles = Roles.from_text("[features.x]")
    pd.DataFrame({"x": np.arange(10.0)}).to_csv(tmp_path / "a.csv", index=False)
    for i in (1, 2, 3):
        apply_file(Spy(roles), tmp_path / "a.csv", tmp_path / "b.csv", roles, chunk=(i, 3))
    assert seen == list(range(10))


def test_parts() -> None:
    for entries, n in ((10, 3), (7, 7), (1000, 13)):
        bounds = [part(entries, i, n) for i in range(1, n + 1)]
        assert bounds[0][0] == 0 and bounds[-1][1] == entries
        assert all(a[1] == b[0] for a, b in itertools.pairwise(bounds))
    for i, n in ((0, 3), (4, 3), (1, 0)):
        with pytest.raises(UserError, match="the first number goes from 1"):
            part(10, i, n)
    with pytest.raises(UserError, match="has only 10 entries"):
        part(10, 1, 11)


def test_a_part_or_slice_without_a_selected_row_is_uncorrected(tmp_path, caplog) -> None:
    pd.DataFrame({"x": np.arange(20.0)}).to_csv(tmp_path / "a.csv", index=False)
    roles = Roles.from_text("selection = 'x > 14'\n[features.x]")
    done = apply_file(Doubles(roles), tmp_path / "a.csv", tmp_path / "b.csv", roles, rows_per_chunk=4)
    assert done.rows == 5
    new = _columns(tmp_path / "b.csv")
    np.testing.assert_array_equal(new["x_corr"], np.where(np.arange(20) > 14, 2.0, 1.0) * np.arange(20))
    done = apply_file(Doubles(roles), tmp_path / "a.csv", tmp_path / "c.csv", roles, chunk=(1, 2))
    assert done.rows == 0 and "no selected row" in caplog.text
    assert _columns(tmp_path / "c.csv")["x_corr"].tolist() == list(range(10))
    none = Roles.from_text("selection = 'x > 99'\n[features.x]")
    with pytest.raises(UserError, match="none of its 20 entries is selected"):
        apply_file(Doubles(none), tmp_path / "a.csv", tmp_path / "d.csv", none)
    assert not (tmp_path / "d.csv").exists()


def test_a_correction_that_is_not_finite_falls_back_to_the_input(tmp_path) -> None:
    class Breaks(Doubles):
        def apply(self, rows: xr.Dataset) -> xr.Dataset:
            out = super().apply(rows)
            out["x_corr_up"][1] = np.nan
            return out

    roles = Roles.from_text("[features.x]")
    pd.DataFrame({"x": np.arange(3.0)}).to_csv(tmp_path / "a.csv", index=False)
    apply_file(Breaks(roles), tmp_path / "a.csv", tmp_path / "b.csv", roles)
    new = _columns(tmp_path / "b.csv")
    assert new["x_corr"].tolist() == [0, 1, 4] and new["x_corr_up"].tolist() == [1, 1, 5]
    assert new["corrected"].tolist() == [1, 0, 1] and new["out_of_support"].tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("output", "options", "words"),
    [
        ("none/b.csv", {}, "the folder .* does not exist"),
        ("b.xls", {}, "unknown ending '.xls'"),
        ("b.csv", {"mode": "friend"}, "--friend is from a .root file"),
        ("b.root", {"mode": "in-place"}, "--in-place is from a .root file"),
        ("a.csv", {}, "is the input file; name another output"),
        ("b.csv", {"chunk": (3, 2)}, "chunk 3/2"),
        ("b.csv", {"tree": "events"}, "has no trees"),
    ],
)
def test_mistakes_leave_nothing_behind(output: str, options: dict, words: str, tmp_path) -> None:
    roles = Roles.from_text("[features.x]")
    pd.DataFrame({"x": np.arange(3.0)}).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(UserError, match=words):
        apply_file(Doubles(roles), tmp_path / "a.csv", tmp_path / output, roles, **options)
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.parametrize("target", ["friend.root", "b.parquet", "b.h5", "b.csv"])
def test_errors_on_the_way_keep_the_old_output(target: str, tmp_path) -> None:
    source = _write(_frame(), tmp_path / "in.root")
    (tmp_path / target).write_text("old")
    with pytest.raises(RuntimeError, match="on purpose"):
        apply_file(Doubles(fail_after=2), source, tmp_path / target, ROLES, rows_per_chunk=100)
    frame = _frame()
    frame.loc[400, ["x1", "pt1", "pt2", "Q1", "Q2"]] = [np.nan, 5.0, 5.0, 1, -1]
    with pytest.raises(UserError, match=r"column 'x' has 1 NaN or infinite values, the first at entry 400"):
        apply_file(Doubles(), _write(frame, tmp_path / "nan.root"), tmp_path / target, ROLES, rows_per_chunk=100)
    assert (tmp_path / target).read_text() == "old"
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(["in.root", "nan.root", target])


SLOW = """
import sys
sys.path.insert(0, {folder!r})
from test_streaming import Doubles
from sciflow_physics.data.roles import Roles
from sciflow_physics.writing.streaming import apply_file
roles = Roles.from_text("[features.x]")
print("begin", flush=True)
apply_file(Doubles(roles, seconds=0.05), "a.csv", {target!r}, roles, rows_per_chunk=1)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_interruptions_leave_no_half_file(number: int, tmp_path) -> None:
    pd.DataFrame({"x": np.arange(2000.0)}).to_csv(tmp_path / "a.csv", index=False)
    code = SLOW.format(folder=str(Path(__file__).parent), target="b.parquet")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    process.stdout.readline()
    deadline = time.monotonic() + 30
    while not (beside := tmp_path / f"b.parquet.tmp-{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert beside.exists()
    os.kill(process.pid, number)
    process.wait(30)
    assert process.returncode != 0 and not (tmp_path / "b.parquet").exists()
    assert beside.exists() == (number == signal.SIGKILL)  # nothing can tidy up after SIGKILL


FULL = """
import resource, signal, sys
sys.path.insert(0, {folder!r})
from test_streaming import Doubles
from sciflow.errors import UserError
from sciflow_physics.data.roles import Roles
from sciflow_physics.writing.streaming import apply_file
roles = Roles.from_text("[features.x]")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, 40_000))
try:
    apply_file(Doubles(roles), "a.csv", {target!r}, roles, mode="copy", rows_per_chunk=500)
except UserError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no limits on the size of a file")
@pytest.mark.parametrize("target", ["b.csv", "b.parquet", "b.root", "b.h5"])
def test_a_full_disk_is_named_and_leaves_nothing(target: str, tmp_path) -> None:
    """In a process of its own: HDF5 ends it with a segmentation fault if a write fails while the file is closed."""
    pd.DataFrame({"x": np.random.default_rng(0).normal(size=20_000)}).to_csv(tmp_path / "a.csv", index=False)
    code = FULL.format(folder=str(Path(__file__).parent), target=target)
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stdout == f"{target}: cannot be written: File too large\n", done
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.csv"]


@pytest.mark.data
def test_real_ntuples(science_data, tmp_path) -> None:
    roles = Roles.preset("zee")
    source = science_data / "physics" / "Zee_Run2011A_early.csv"
    done = apply_file(Doubles(roles), source, tmp_path / "b.csv", roles, rows_per_chunk=1000)
    assert (done.entries, done.rows) == (9112, 9008)
    lines = [line.rsplit(",", 36)[0] for line in (tmp_path / "b.csv").read_text().splitlines()]
    assert lines == source.read_text().splitlines()
    jagged = Roles.from_text("[objects]\njagged = true\n[features.iso]\ncolumn = 'Muon_Iso'")
    source = science_data / "physics" / "uproot-HZZ.root"
    apply_file(Doubles(jagged), source, tmp_path / "all.root", jagged, mode="copy", rows_per_chunk=500)
    before, after = uproot.open(source)["events"], uproot.open(tmp_path / "all.root")["events"]
    assert all(ak.array_equal(before[name].array(), after[name].array()) for name in before.keys())  # noqa: SIM118
    assert ak.array_equal(after["Muon_Iso_corr"].array(), 2.0 * ak.values_astype(before["Muon_Iso"].array(), "float64"))
    parquet = apply_file(Doubles(jagged), source, tmp_path / "all.parquet", jagged)
    assert pq.read_metadata(parquet.path).num_rows == 2421
