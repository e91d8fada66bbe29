"""Formats: the same table in each of them, slices, and damaged files."""

from __future__ import annotations

import awkward as ak
import h5py
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import uproot
from sciflow_physics.data import read
from sciflow_physics.data.formats import kind_of, open_source
from sciflow_physics.data.roles import Roles

from sciflow.errors import UserError

ROLES = Roles.from_text(
    "[features.x]\n[conditions.pt]\n[category]\ncolumn = 'type'\n[event]\nid = ['event']\n[weight]\ncolumn = 'w'"
)
N = 1000


def table(n: int = N) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(5)
    return {
        "event": np.arange(n, dtype=np.int64) + 2**40,
        "x": rng.normal(size=n),
        "pt": rng.exponential(size=n).astype(np.float32),
        "w": rng.normal(size=n),
        "type": np.where(rng.uniform(size=n) < 0.5, "EB", "EE"),
        "good": rng.uniform(size=n) < 0.5,
        "count": rng.integers(0, 9, n, dtype=np.int32),
    }


def write(path, columns: dict[str, np.ndarray]) -> None:
    if path.suffix == ".csv":
        pd.DataFrame(columns).to_csv(path, index=False)
    elif path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path, row_group_size=300)
    elif path.suffix == ".root":
        with uproot.recreate(path) as file:
            text = {name: ak.Array(column.tolist()) if column.dtype.kind == "U" else column for name, column in columns.items()}
            file.mktree("events", {name: "string" if name == "type" else column.dtype for name, column in columns.items()})
            for start in range(0, len(columns["x"]), 300):
                file["events"].extend({name: column[start : start + 300] for name, column in text.items()})
    else:
        with h5py.File(path, "w") as file:
            for name, column in columns.items():
                file[f"events/{name}"] = column.astype("S") if column.dtype.kind == "U" else column


@pytest.mark.parametrize("suffix", ["csv", "parquet", "root", "h5"])
def test_every_format_gives_the_same_rows(suffix: str, tmp_path) -> None:
    columns = table()
    write(tmp_path / f"a.{suffix}", columns)
    rows = read(tmp_path / f"a.{suffix}", ROLES)
    np.testing.assert_array_equal(rows["event"], columns["event"])
    np.testing.assert_array_equal(rows["x"], columns["x"])
    np.testing.assert_array_equal(rows["weight"], columns["w"])
    np.testing.assert_array_equal(rows["category"], columns["type"])
    np.testing.assert_allclose(rows["pt"], columns["pt"], rtol=1e-7 if suffix == "csv" else 0)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "root", "h5"])
@pytest.mark.parametrize(("start", "stop", "step"), [(0, N, N), (0, N, 7), (290, 310, 13), (999, 1000, 5), (300, 900, 300)])
def test_slices(suffix: str, start: int, stop: int, step: int, tmp_path) -> None:
    columns = table()
    write(tmp_path / f"a.{suffix}", columns)
    with open_source(tmp_path / f"a.{suffix}") as source:
        assert source.entries == N and sorted(source.names) == sorted(columns)
        pieces = list(source.chunks(["x", "type"], start, stop, step))
        carried = list(source.carriers(["x"], start, stop, step))
    assert [first for first, _ in pieces] == list(range(start, stop, step)) == [first for first, *_ in carried]
    assert all(len(piece["x"]) <= step for _, piece in pieces)
    np.testing.assert_array_equal(np.concatenate([piece["x"] for _, piece in pieces]), columns["x"][start:stop])
    np.testing.assert_array_equal(np.concatenate([piece["type"] for _, piece in pieces]), columns["type"][start:stop])
    for name in ("x", "good", "count", "type", "event"):
        whole = np.concatenate([carrier.columns()[name] for _, _, carrier in carried])
        assert (whole.astype(columns[name].dtype) == columns[name][start:stop]).all()


@pytest.mark.parametrize("suffix", ["csv", "parquet", "root", "h5"])
def test_truncated_files_are_one_line_with_the_name(suffix: str, tmp_path) -> None:
    path = tmp_path / f"whole.{suffix}"
    write(path, table(20_000))
    content = path.read_bytes()
    for keep in (0.02, 0.5, 0.97):
        size = int(len(content) * keep)
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[:size])
        with pytest.raises(UserError) as caught:
            read(cut, ROLES)
        assert str(cut) in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize("suffix", ["csv", "parquet", "root", "h5"])
def test_empty_foreign_and_missing_files(suffix: str, tmp_path) -> None:
    path = tmp_path / f"a.{suffix}"
    with pytest.raises(UserError, match="no such file"):
        read(path, ROLES)
    path.write_bytes(b"")
    with pytest.raises(UserError, match="is empty"):
        read(path, ROLES)
    path.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(UserError, match=path.name):
        read(path, ROLES)
    path.unlink()
    path.mkdir()
    with pytest.raises(UserError, match="is a folder"):
        read(path, ROLES)
    write(tmp_path / f"b.{suffix}", table(0)) if suffix != "root" else None
    if suffix != "root":
        with pytest.raises(UserError, match="no entries"):
            read(tmp_path / f"b.{suffix}", ROLES)


def test_unknown_endings() -> None:
    with pytest.raises(UserError, match=r"unknown ending '\.xls'"):
        kind_of("a.xls")
    assert kind_of("A.ROOT") == "root"


def test_trees(tmp_path) -> None:
    with uproot.recreate(tmp_path / "a.root") as file:
        for name in ("events", "extra/events"):
            file.mktree(name, {"x": "float64"})
            file[name].extend({"x": np.arange(3.0)})
    roles = Roles.from_text("[features.x]")
    with pytest.raises(UserError, match=r"which tree\?.*events, extra/events"):
        read(tmp_path / "a.root", roles)
    with pytest.raises(UserError, match=r"no tree 'event'; the file has events, extra/events"):
        read(tmp_path / "a.root", roles, tree="event")
    assert read(tmp_path / "a.root", roles, tree="extra/events;1").sizes["row"] == 3
    with uproot.recreate(tmp_path / "b.root") as file:
        file["h"] = np.histogram([1.0])
    with pytest.raises(UserError, match=r"has no TTree; it has h \(TH1D\)"):
        read(tmp_path / "b.root", roles)
    with uproot.recreate(tmp_path / "c.root") as file:
        file.mktree("events", {"x": "float64"})
    with pytest.raises(UserError, match=r"c\.root:events: has no entries"):
        read(tmp_path / "c.root", roles)
    write(tmp_path / "d.csv", table(3))
    with pytest.raises(UserError, match="has no trees"):
        read(tmp_path / "d.csv", roles, tree="events")


def test_hdf5_groups_and_compound_tables(tmp_path) -> None:
    columns = table(10)
    kind = [(name, column.dtype if column.dtype.kind != "U" else "S2") for name, column in columns.items()]
    block = np.empty(10, kind)
    for name, column in columns.items():
        block[name] = column
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["deep/table"] = block
        file["other/x"] = np.arange(3.0)
    rows = read(tmp_path / "a.h5", ROLES, tree="deep/table")
    np.testing.assert_array_equal(rows["x"], columns["x"])
    with pytest.raises(UserError, match=r"which table\?.*deep/table, other"):
        read(tmp_path / "a.h5", ROLES)
    with pytest.raises(UserError, match=r"no group or table 'deep'"):
        read(tmp_path / "a.h5", ROLES, tree="deep")
    with h5py.File(tmp_path / "b.h5", "w") as file:
        file["x"], file["pt"] = np.arange(3.0), np.arange(4.0)
    with pytest.raises(UserError, match="columns differ in length: pt 4, x 3"):
        read(tmp_path / "b.h5", Roles.from_text("[features.x]"))


def test_csv_details(tmp_path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b'\xef\xbb\xbfx, "y z",t\r\n1,2,"a,b"\r\n\r\n0.1,1e-300,c')
    with open_source(path) as source:
        assert source.names == ["x", "y z", "t"] and source.entries == 2
        _, columns = next(source.chunks(["x", "y z", "t"], 0, 2, 2))
    assert columns["x"].tolist() == [1.0, 0.1] and columns["y z"].tolist() == [2.0, 1e-300]
    assert columns["t"].tolist() == ["a,b", "c"]
    for content, words in {
        "x,y\n1,2\n3": "truncated: the last row, 1, has 1 of 2 fields",
        "x,x\n1,2\n": "names a column twice",
        "x,y\n1,2,3\n4,5,6\n": "row 0 has 3 of 2 fields",
        "x,y\n1,2\n4\n4,5\n": "row 1 has 1 of 2 fields",
        'x,y\n1,"a\nb"\n': "row 0 has|truncated",
        '"x","y"\n1,"a,b",3\n4,"c,d"\n': "row 0 has 3 of 2 fields",
    }.items():
        path.write_text(content)
        with pytest.raises(UserError, match=words):
            read(path, Roles.from_text("[features.x]"))


def test_parquet_lists_and_missing_values(tmp_path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        pa.table(
            {
                "pt": pa.array([[1.0, 2.0], [], [3.0]]),
                "x": pa.array([1, None, 3]),
                "when": pa.array([1, 2, 3], pa.timestamp("s")),
            }
        ),
        path,
    )
    rows = read(path, Roles.from_text("[objects]\njagged = true\n[features.pt]"))
    assert rows["pt"].values.tolist() == [1, 2, 3] and rows["entry"].values.tolist() == [0, 0, 2]
    with pytest.raises(UserError, match="column 'x' has 1 NaN or infinite values, the first at entry 1"):
        read(path, Roles.from_text("[features.x]"))
    with pytest.raises(UserError, match="column 'when' is timestamp"):
        read(path, Roles.from_text("[features.when]"))
