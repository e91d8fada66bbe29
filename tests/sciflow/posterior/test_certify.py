"""`sciflow certify`: what it prints and its exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import h5py
import pytest
import torch

from sciflow.certificate import Certificate, Test
from sciflow.cli import run
from sciflow.posterior import Estimate, Posterior
from sciflow.posterior.writing import to_tree, write
from sciflow.store import to_netcdf

PASSED = Test("k-hat", 0.3, 0.7, "<=")
WARNED = Test("R-hat", 1.02, 1.01, "<=", severity="warn", description="of mass")
FAILED = Test("coverage", 0.5, (0.6, 0.7), "inside")
PENDING = Test("C2ST", None, 0.55, "<=")


def draws(path: Path, *tests: Test, kind: type = Posterior) -> Path:
    return write(kind(torch.randn(1, 20, 2), method="Sampler()", certificate=Certificate(tests, subject="Sampler")), path)


@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
@pytest.mark.parametrize(
    ("tests", "codes"),
    [((PASSED,), (0, 0, 0)), ((PASSED, WARNED), (0, 3, 0)), ((PASSED, PENDING), (0, 3, 3)), ((WARNED, FAILED), (0, 3, 3))],
)
def test_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, tests: tuple, codes: tuple) -> None:
    path = draws(tmp_path / name, *tests)
    for arguments, code in zip(([], ["--require", "pass"], ["--require", "warn"]), codes, strict=True):
        assert run(["certify", str(path), *arguments]) == code
        shown = capsys.readouterr()
        assert "Certificate of Sampler" in shown.out and tests[0].name in shown.out
        assert ("required is" in shown.err) == (code == 3)
    if WARNED in tests:
        assert "- R-hat warned: it is 1.02, demanded is ≤ 1.01 (of mass)." in shown.out


def test_an_estimate_is_never_enough(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = draws(tmp_path / "draws.nc", PASSED, kind=Estimate)
    assert run(["certify", str(path)]) == 0 and run(["certify", str(path), "--require", "warn"]) == 3
    assert "an estimate, not the posterior's" in capsys.readouterr().err


def test_bad_files_are_the_callers_fault(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "text.nc").write_text("hello")
    tree = to_tree(Posterior(torch.zeros(1, 3)))
    del tree.attrs["certificate"]
    to_netcdf(tree, tmp_path / "bare.nc")
    altered = draws(tmp_path / "altered.nc", FAILED)
    with h5py.File(altered, "r+") as file:
        content = json.loads(file.attrs["certificate"])
        file.attrs["certificate"] = json.dumps({**content, "verdict": "passed"})
    wanted = {"absent.nc": "no such file", "text.nc": "not readable as draws", "bare.nc": "have no certificate",
              "altered.nc": "it was altered"}  # fmt: skip
    for name, message in wanted.items():
        assert run(["certify", str(tmp_path / name), "--require", "warn"]) == 2
        assert message in (found := capsys.readouterr().err) and name in found
    assert run(["certify", str(altered), "--require", "maybe"]) == 2
    assert run(["certify"]) == 2


def test_page_and_help(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = draws(tmp_path / "draws.nc", WARNED)
    assert run(["certify", str(path), "--html", str(tmp_path / "page.html"), "--require", "pass"]) == 3
    assert "▲ <b>warned</b>" in (tmp_path / "page.html").read_text()
    assert run(["certify", str(path), "--html", str(tmp_path / "page.txt")]) == 2
    assert ".html or .png" in capsys.readouterr().err
    assert run(["certify", "--help"]) == 0
    assert "--require [pass|warn]" in capsys.readouterr().out


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from sciflow.cli import run; run(['certify', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
