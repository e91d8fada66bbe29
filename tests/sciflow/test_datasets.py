"""The registry of public data sets: a server on 127.0.0.1 stands for the official source; no network."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import itertools
import os
import threading
from pathlib import Path

import pytest

from sciflow import UserError, _download, datasets
from sciflow.datasets import Entry

CONTENT = b"Run,Event,pt\n" + b"".join(b"%d,%d,%d.5\n" % (160000 + 3000 * (i % 7), i, 20 + i % 50) for i in range(5000))


class _Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        if self.path == "/absent":
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT)))
        self.end_headers()
        self.wfile.write(CONTENT[: len(CONTENT) // 2] if self.path == "/truncated" else CONTENT)

    def log_message(self, *arguments) -> None:
        pass


@pytest.fixture(scope="module")
def server():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()


@pytest.fixture
def register(monkeypatch, tmp_path):
    """Replace the registry; downloads go to a folder of the test, $SCIFLOW_DATA is another one."""
    shared, cached = tmp_path / "shared", tmp_path / "cached"
    shared.mkdir()
    monkeypatch.setenv("SCIFLOW_DATA", str(shared))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(datasets, "cache_folder", lambda: cached)
    known: dict[str, Entry] = {}
    monkeypatch.setattr(datasets, "entries", lambda: known)

    def _register(name: str, **fields) -> Entry:
        common = {"file": f"sub/{name}.csv", "title": "t", "licence": "CC0", "citation": "nobody"}
        known[name] = Entry(name, **{**common, **fields})
        return known[name]

    return _register


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _files(folder: Path) -> list[str]:
    return sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file())


def test_every_entry_of_the_registry_is_complete():
    known = datasets.entries()
    assert len({entry.file for entry in known.values()}) == len(known)
    for entry in known.values():
        assert entry.title and entry.licence and entry.citation and entry.size > 0
        assert all(url.startswith("https://") for url in entry.urls)
        assert len(entry.sha256) in {0, 64}
        if entry.derived:
            assert entry.derived["from"] in known and entry.sha256
        if entry.generated:
            assert entry.script and entry.sha256


@pytest.mark.data
def test_the_registry_agrees_with_the_files_at_hand(science_data, monkeypatch):
    monkeypatch.setenv("SCIFLOW_DATA", os.fspath(science_data))
    results = [datasets.verify(name) for name in datasets.entries()]
    assert {result.status for result in results} <= {"ok", "absent", "unpinned"}
    assert [result.name for result in results if result.status == "ok"] == [
        "zee_run2011a_early", "zmumu_run2011a", "uproot_zmumu", "uproot_hzz", "zee_simulation",
        "mri_ch2", "mri_s1", "mri_otsu",
    ]  # fmt: skip
    sizes = {r.name: r.path.stat().st_size for r in results if r.path}
    assert sizes == {name: datasets.entry(name).size for name in sizes}


def test_fetch_downloads_once_and_finds_it_again(server, register, tmp_path):
    register("good", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    with pytest.raises(UserError, match="run `sciflow data fetch good`"):
        datasets.path("good")
    file = datasets.fetch("good")
    assert file == tmp_path / "cached" / "sub" / "good.csv" and file.read_bytes() == CONTENT
    stamp = file.stat().st_mtime_ns
    assert datasets.fetch("good") == datasets.path("good", check=True) == file
    assert file.stat().st_mtime_ns == stamp
    assert datasets.verify("good").status == "ok"


def test_the_shared_folder_comes_first_and_is_never_written(server, register, tmp_path):
    register("good", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    file = datasets.fetch("good")
    shared = tmp_path / "shared" / "sub" / "good.csv"
    shared.parent.mkdir()
    shared.write_bytes(CONTENT)
    assert datasets.fetch("good") == datasets.path("good") == shared
    file.unlink()
    shared.write_bytes(b"changed")
    assert datasets.verify("good").status == "wrong"
    for action in (lambda: datasets.fetch("good"), lambda: datasets.path("good", check=True)):
        with pytest.raises(UserError, match=r"good.csv has sha256 \w+, expected"):
            action()
    assert shared.read_bytes() == b"changed"
    assert not file.exists()


def test_a_wrong_file_in_the_cache_is_replaced(server, register, tmp_path):
    register("good", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    file = tmp_path / "cached" / "sub" / "good.csv"
    file.parent.mkdir(parents=True)
    file.write_bytes(b"old")
    assert datasets.fetch("good").read_bytes() == CONTENT


def test_a_wrong_checksum_leaves_nothing_behind(server, register, tmp_path):
    register("bad", urls=(f"{server}/good",), sha256="0" * 64)
    with pytest.raises(UserError, match=r"could not fetch bad.csv: http://127.*another checksum"):
        datasets.fetch("bad")
    assert _files(tmp_path) == []


@pytest.mark.parametrize("sha256", [_sha256(CONTENT), ""])
def test_a_truncated_download_leaves_nothing_behind(server, register, tmp_path, sha256):
    register("half", urls=(f"{server}/truncated",), sha256=sha256)
    with pytest.raises(UserError, match=r"could not fetch half.csv: .*(broke off|another checksum)"):
        datasets.fetch("half")
    assert _files(tmp_path) == []


def test_an_interrupted_download_leaves_nothing_behind(server, register, tmp_path, monkeypatch):
    def interrupt(self, amount):
        raise KeyboardInterrupt

    register("good", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    monkeypatch.setattr(_download._Bar, "update", interrupt)
    with pytest.raises(KeyboardInterrupt):
        datasets.fetch("good")
    assert _files(tmp_path) == []


def test_the_next_source_is_tried(server, register):
    register("good", urls=(f"{server}/absent", f"{server}/truncated", f"{server}/good"), sha256=_sha256(CONTENT))
    assert datasets.fetch("good", progress=False).read_bytes() == CONTENT


def test_every_source_is_named_with_its_reason(server, register):
    register("gone", urls=(f"{server}/absent", "http://127.0.0.1:9/closed"), sha256=_sha256(CONTENT))
    with pytest.raises(UserError, match=r"absent: the server answers 404 Not Found; http://127.0.0.1:9/closed: no connection"):
        datasets.fetch("gone")


def test_without_a_known_checksum_the_computed_one_is_told(server, register, caplog):
    register("loose", urls=(f"{server}/good",))
    file = datasets.fetch("loose")
    assert datasets.verify("loose") == datasets.Verification("loose", "unpinned", file, _sha256(CONTENT))
    assert f"unpinned: no official checksum is known; this file has sha256 {_sha256(CONTENT)}" in caplog.text


def test_licence_and_citation_are_told(server, register, caplog):
    register("good", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    with caplog.at_level("INFO", logger="sciflow.datasets"):
        datasets.fetch("good")
    assert "licence CC0; cite: nobody" in caplog.text


def test_a_derived_set_keeps_rows_below_the_bound(server, register, tmp_path):
    lines = CONTENT.splitlines(keepends=True)
    expected = lines[0] + b"".join(line for line in lines[1:] if int(line[:6]) < 169000)
    assert 0 < expected.count(b"\n") < len(lines)
    register("whole", urls=(f"{server}/good",), sha256=_sha256(CONTENT))
    register("part", derived={"from": "whole", "column": "Run", "below": 169000}, sha256=_sha256(expected))
    assert datasets.fetch("part", folder=tmp_path / "chosen").read_bytes() == expected
    assert _files(tmp_path) == ["chosen/sub/part.csv", "chosen/sub/whole.csv"]


def test_a_derived_set_notices_that_its_source_changed(server, register, tmp_path):
    register("whole", urls=(f"{server}/good",))
    register("part", derived={"from": "whole", "column": "Run", "below": 170000}, sha256="0" * 64)
    with pytest.raises(UserError, match=r"with Run < 170000 has sha256 \w+, expected 0+: its source has changed"):
        datasets.fetch("part")
    register("lost", derived={"from": "whole", "column": "Lumi", "below": 1}, sha256="0" * 64)
    with pytest.raises(UserError, match="column 'Lumi' is missing; it has: Run, Event, pt"):
        datasets.fetch("lost")
    assert _files(tmp_path) == ["cached/sub/whole.csv"]


@pytest.mark.data
def test_the_early_runs_are_recovered_from_a_file_with_later_runs_mixed_in(science_data, tmp_path, monkeypatch):
    """The official file has the later runs between the early ones; whatever they are, the pinned bytes come back."""
    known = datasets.entries()
    header, *early = (science_data / known["zee_run2011a_early"].file).read_bytes().splitlines(keepends=True)
    mixed = itertools.chain.from_iterable((line, b"17" + line[2:]) if i % 3 == 0 else (line,) for i, line in enumerate(early))
    whole = tmp_path / known["zee_run2011a"].file
    whole.parent.mkdir()
    whole.write_bytes(b"".join([header, *mixed]))
    file = datasets.fetch("zee_run2011a_early", folder=tmp_path)
    assert _sha256(file.read_bytes()) == known["zee_run2011a_early"].sha256
    assert whole.stat().st_size > file.stat().st_size


def test_a_generated_set_names_its_script(register):
    register("made", generated=True, script="data/make_it.py", sha256="0" * 64)
    for action in (datasets.fetch, datasets.path):
        with pytest.raises(UserError, match=r"data/make_it\.py"):
            action("made")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "exactly one of"),
        ({"urls": ("https://x",), "generated": True}, "exactly one of"),
        ({"urls": ("https://x",), "file": "../x"}, "relative path"),
        ({"urls": ("https://x",), "file": "/x"}, "relative path"),
    ],
)
def test_a_wrong_entry_is_refused(register, fields, message):
    with pytest.raises(UserError, match=message):
        register("wrong", **fields)


def test_an_embedded_set_is_unpacked_and_checked(register, tmp_path, monkeypatch):
    package = tmp_path / "sciflow_boxed"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "made.csv.gz").write_bytes(gzip.compress(CONTENT))
    monkeypatch.syspath_prepend(tmp_path)
    register("made", generated=True, script="x", embedded="sciflow_boxed:made.csv.gz", sha256=_sha256(CONTENT))
    assert datasets.fetch("made").read_bytes() == CONTENT
    register("bad", generated=True, script="x", embedded="sciflow_boxed:made.csv.gz", sha256="0" * 64)
    with pytest.raises(UserError, match="the file inside the package sciflow_boxed has sha256"):
        datasets.fetch("bad")
    assert _files(tmp_path / "cached") == ["sub/made.csv"]


def test_what_the_packages_embed_is_what_the_registry_pins(tmp_path):
    embedded = [entry.name for entry in datasets.entries().values() if entry.embedded]
    assert embedded
    for name in embedded:
        assert datasets.verify(name, folder=datasets.fetch(name, folder=tmp_path).parents[1]).status == "ok"
