"""`sciflow certify`: what it prints and its exit codes."""

from __future__ import annotations

import json
import shutil
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


def test_no_file_that_is_damaged_or_of_another_kind_is_an_internal_error(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    whole = draws(tmp_path / "draws.nc", PASSED).read_bytes()
    for share in (0.0, 0.01, 0.3, 0.6, 0.9, 0.999):
        (tmp_path / f"cut-{share}.nc").write_bytes(whole[: int(share * len(whole))])
    (tmp_path / "certificate.json").write_text(Certificate([PASSED]).to_json())
    (tmp_path / "image.png").write_bytes(b"\x89PNG" + bytes(200))
    (tmp_path / "folder").mkdir()
    for name in ("no-root", "root-cut", "no-group", "array-cut", "chunk-cut", "chunk-gone", "binary"):
        draws(tmp_path / f"{name}.zarr", PASSED)
    (tmp_path / "no-root.zarr" / "zarr.json").unlink()
    root = tmp_path / "root-cut.zarr" / "zarr.json"
    root.write_text(root.read_text()[:200])
    shutil.rmtree(tmp_path / "no-group.zarr" / "posterior")
    (tmp_path / "array-cut.zarr" / "posterior" / "x" / "zarr.json").write_text("{")
    (tmp_path / "array-cut.zarr" / "zarr.json").write_text(unconsolidated(tmp_path / "array-cut.zarr" / "zarr.json"))
    for name in ("chunk-cut", "chunk-gone"):
        (chunk,) = [entry for entry in (tmp_path / f"{name}.zarr" / "posterior" / "x" / "c").rglob("*") if entry.is_file()]
        chunk.write_bytes(chunk.read_bytes()[:20]) if name == "chunk-cut" else chunk.unlink()
    (tmp_path / "binary.zarr" / "zarr.json").write_bytes(bytes(range(256)))
    with h5py.File(tmp_path / "other.nc", "w") as file:
        file["numbers"] = [1.0, 2.0]
    paths = [entry for entry in tmp_path.iterdir() if entry.name != "draws.nc"]
    assert len(paths) == 17
    for path in paths:
        for extra in ([], ["--require", "warn"]):
            code, shown = run(["certify", str(path), *extra]), capsys.readouterr()
            assert code == 2 and path.name in shown.err and shown.err.count("\n") == 1, (path.name, code, shown)
            assert "internal error" not in shown.err and not shown.out


def unconsolidated(path: Path) -> str:
    content = json.loads(path.read_text())
    content.pop("consolidated_metadata")
    return json.dumps(content)


@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
def test_faults_of_the_draws_fail_whatever_the_certificate_says(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str
) -> None:
    """NaN draws, weights that are all 0, weights that are NaN, in files that were written with a certificate that passes."""
    x, weight = torch.randn(1, 20, 2), torch.zeros(1, 20)
    lost = x.clone()
    lost[0, 3] = torch.nan
    certificate = Certificate([PASSED], subject="Sampler")
    cases = {
        "2 of 40 numbers of the draws are NaN": Posterior(lost, certificate=certificate),
        "all draws have weight 0": Posterior(x, log_weight=weight - torch.inf, certificate=certificate),
        "log-weights are NaN": Posterior(x, log_weight=torch.full((1, 20), torch.nan), certificate=certificate),
    }
    for message, result in cases.items():
        path = write(result, tmp_path / name)
        assert run(["certify", str(path)]) == 0 and run(["certify", str(path), "--require", "warn"]) == 3
        shown = capsys.readouterr()
        assert message in shown.out and "the verdict is 'failed'" in shown.err
        assert run(["certify", str(path), "--html", str(tmp_path / "page.html")]) == 0
        assert "✘ <b>failed</b>" in (tmp_path / "page.html").read_text()
    path = write(Posterior(x, log_weight=weight, certificate=certificate), tmp_path / name)
    assert run(["certify", str(path), "--require", "pass"]) == 0


def test_page_and_help(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = draws(tmp_path / "draws.nc", WARNED)
    assert run(["certify", str(path), "--html", str(tmp_path / "page.html"), "--require", "pass"]) == 3
    assert "▲ <b>warned</b>" in (tmp_path / "page.html").read_text()
    assert run(["certify", str(path), "--html", str(tmp_path / "page.txt")]) == 2
    assert ".html or .png" in capsys.readouterr().err
    assert run(["certify", "--help"]) == 0
    text = capsys.readouterr().out
    assert "--require [pass|warn]" in text and all(f" {code}: " in text for code in (0, 2, 3))


def test_help_imports_nothing_heavy() -> None:
    script = "import sys; from sciflow.cli import run; run(['certify', '--help']); sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], capture_output=True).returncode == 0
