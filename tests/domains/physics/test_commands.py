"""The command line: what works, and one line with exit code 2 for what does not."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import uproot
from click.testing import CliRunner
from sciflow_physics.commands import physics
from sciflow_physics.commands.describe import template
from sciflow_physics.data.formats import open_source
from sciflow_physics.data.roles import Roles

from sciflow.cli import run

ROLES = """
selection = "pt1 > 1 and pt2 > 1"
[objects]
suffixes = ["1", "2"]
[event]
id = ["event"]
[features.iso]
unit = "GeV"
transform = "log"
point_mass = 0.0
[features.width]
[conditions.pt]
unit = "GeV"
transform = "log"
"""
QUICK = ["--epochs", "1", "--members", "2", "--member-epochs", "1", "--hidden", "8,8", "--transforms", "2"]


def _frame(n: int, seed: int) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"event": np.arange(n)})
    for s in "12":
        frame[f"pt{s}"] = rng.exponential(20, n)
        frame[f"iso{s}"] = np.where(rng.uniform(size=n) < 0.4, 0.0, 0.5 + rng.exponential(2 + seed, n))
        frame[f"width{s}"] = rng.normal(seed, 1, n)
    return frame


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("physics")
    (folder / "roles.toml").write_text(ROLES)
    for name, seed in (("sim", 0), ("data", 1)):
        frame = _frame(400, seed)
        frame.to_csv(folder / f"{name}.csv", index=False)
        with uproot.recreate(folder / f"{name}.root") as file:
            file.mktree("events", {column: frame[column].dtype for column in frame})
            file["events"].extend({column: frame[column].to_numpy() for column in frame})
    paths = {"--sim": "sim.root", "--data": "data.csv", "--roles": "roles.toml", "--output": "model"}
    assert run(["physics", "fit", *(word for key, value in paths.items() for word in (key, str(folder / value))), *QUICK]) == 0
    return folder


def _run(*words: object) -> int:
    return run(["physics", *map(str, words)])


def _table(path: Path) -> dict:
    with open_source(path) as source:
        return next(source.chunks(source.names, 0, source.entries, source.entries))[1]


def test_fit_saved_a_model_that_knows_its_files(work: Path) -> None:
    import sciflow
    from sciflow.persistence import metadata

    correction = sciflow.load(work / "model", trust=("sciflow_physics",))
    assert correction.roles == Roles.from_text(ROLES) and len(correction.folds) == 2 and correction.members == 2
    record = metadata(work / "model")
    assert record["simulation"]["file"] == "sim.root" and len(record["data"]["sha256"]) == 64
    assert record["options"]["epochs"] == 1


@pytest.mark.parametrize(("output", "options"), [("f.root", []), ("c.parquet", []), ("c.csv", []), ("k.root", ["--copy"])])
def test_apply(output: str, options: list[str], work: Path, tmp_path, capsys) -> None:
    assert _run("apply", "--model", work / "model", "--input", work / "sim.root", "--output", tmp_path / output, *options) == 0
    said = capsys.readouterr().out
    assert output in said and "corrected rows in 400 entries" in said
    new, old = _table(tmp_path / output), _table(work / "sim.root")
    expected = {f"{f}{s}_corr{k}" for f in ("iso", "width") for s in "12" for k in ("", "_up", "_down")}
    expected |= {f"{name}{s}" for name in ("out_of_support", "weight_kinematic", "corrected") for s in "12"}
    assert expected <= set(new) and set(new) - expected == (set() if output == "f.root" else set(old))
    chosen = np.asarray(new["corrected1"]).astype(bool)
    np.testing.assert_array_equal(chosen, (old["pt1"] > 1) & (old["pt2"] > 1))
    for name in ("iso1", "width2"):
        np.testing.assert_array_equal(new[f"{name}_corr"][~chosen], old[name][~chosen])
        assert (new[f"{name}_corr"][chosen] != old[name][chosen]).mean() > 0.5 and np.isfinite(new[f"{name}_corr"]).all()


def test_apply_in_place_and_in_parts(work: Path, tmp_path) -> None:
    target = tmp_path / "mine.root"
    shutil.copyfile(work / "sim.root", target)
    assert _run("apply", "--model", work / "model", "--input", target, "--output", target, "--in-place") == 0
    whole = _table(target)
    parts = []
    for i in range(1, 4):
        out = tmp_path / f"{i}.root"
        words = ["--model", work / "model", "--input", work / "sim.root", "--output", out, "--chunk", f"{i}/3"]
        assert _run("apply", *words, "--rows-per-chunk", 100 * i) == 0
        parts.append(_table(out))
    for name in parts[0]:
        assert np.concatenate([part[name] for part in parts]).tobytes() == whole[name].tobytes()


def test_export(work: Path, tmp_path, capsys) -> None:
    import onnxruntime

    words = ["--model", work / "model", "--output", tmp_path / "m.onnx", "--no-band", "--fold", 1]
    assert _run("export", *words) == 0 and "bytes" in capsys.readouterr().out
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), providers=["CPUExecutionProvider"])
    assert [entry.name for entry in session.get_inputs()] == ["features", "conditions", "uniform"]


def _validate(work: Path, output: Path, *options: str) -> int:
    words = ["--model", work / "model", "--sim", work / "sim.root", "--data", work / "data.csv", "--output", output]
    return _run("validate", *words, "--bootstrap", 10, *options)


@pytest.mark.slow
def test_validate(work: Path, tmp_path, capsys) -> None:
    assert _validate(work, tmp_path / "report") == 0
    assert "closure.html" in capsys.readouterr().out and (tmp_path / "report" / "closure.html").is_file()


def test_what_validate_hands_to_the_report(work: Path, tmp_path, capsys, monkeypatch) -> None:
    import sciflow_physics.report

    class Failed:
        verdict = "failed"

    def closure(before, after, data, roles, **options):
        assert before.sizes == after.sizes and data.sizes["row"] > 0 and roles == Roles.from_text(ROLES)
        np.testing.assert_array_equal(before["pt"], after["pt"])
        assert "iso_corr" in after and "iso_corr" not in before
        assert options["folder"] == tmp_path / "report" and options["bootstrap"] == 10
        assert options["context"]["files"]["simulation"]["file"] == "sim.root"
        return Failed()

    monkeypatch.setattr(sciflow_physics.report, "closure", closure)
    assert _validate(work, tmp_path / "report") == 0 and "failed" in capsys.readouterr().out
    assert _validate(work, tmp_path / "report", "--strict") == 3


def test_roles(work: Path, capsys) -> None:
    assert _run("roles") == 0 and capsys.readouterr().out == template()
    assert _run("roles", "zee") == 0 and "isoHcal" in capsys.readouterr().out
    assert _run("roles", work / "roles.toml", work / "sim.root") == 0
    said = capsys.readouterr().out
    assert "400 entries" in said and "iso [GeV]" in said and "P(0) = 0.3" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("fit --sim {w}/none.root --data {w}/data.csv --roles {w}/roles.toml --output {t}/m", "none.root: no such file"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/none.toml --output {t}/m", "none.toml: cannot read the roles"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles zeee --output {t}/m", "did you mean 'zee'?"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles zee --output {t}/m", "sim.root:events: no column"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/roles.toml --output {t}/no/m", "does not exist"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/roles.toml --output {w}", "is not a model"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/roles.toml --output {t}/m --hidden 8,x", "--hidden 8,x"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/roles.toml --output {t}/m --members 1", "--members 1"),
        ("fit --sim {w}/sim.root --data {w}/data.csv --roles {w}/roles.toml --output {t}/m --method magic", "--method"),
        ("fit --sim {w}/sim.root --sim-tree x --data {w}/data.csv --roles {w}/roles.toml --output {t}/m", "no tree 'x'"),
        ("fit --sim {w}/sim.root", "Missing option"),
        ("apply --model {w}/none --input {w}/sim.root --output {t}/a.root", "no such folder"),
        ("apply --model {t} --input {w}/sim.root --output {t}/a.root", "not a model folder"),
        ("apply --model {w}/model --input {w}/none.root --output {t}/a.root", "none.root: no such file"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/a.xyz", "unknown ending"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/no/a.root", "does not exist"),
        ("apply --model {w}/model --input {w}/sim.root --output {w}/sim.root", "is the input file"),
        ("apply --model {w}/model --input {w}/sim.csv --output {t}/a.root --friend", "--friend is from a .root file"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/a.root --chunk 0/3", "goes from 1 to 3"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/a.root --chunk three", "say I/N"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/a.root --tree nope", "the file has events"),
        ("apply --model {w}/model --input {w}/sim.root --output {t}/a.root --roles zee", "the model's are iso, width"),
        ("apply --model {w}/model --input {w}/cut.root --output {t}/a.root", "cut.root: not a readable ROOT file"),
        ("apply --model {w}/model --input {w}/nan.csv --output {t}/a.csv", "column 'iso' has 1 NaN or infinite"),
        ("validate --model {w}/model --sim {w}/sim.csv --data {w}/none.csv --output {t}/r", "none.csv: no such file"),
        ("validate --model {w}/model --sim {w}/sim.csv --data {w}/data.csv --output {w}/sim.csv", "is a file"),
        ("export --model {w}/model --output {t}/m.bin", "ends in .onnx"),
        ("export --model {w}/model --output {t}/m.onnx --fold 7", "folds 0 to 1"),
        ("roles {w}/roles.toml {w}/none.csv", "none.csv: no such file"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(words: str, message: str, work: Path, tmp_path, capsys) -> None:
    if not (work / "cut.root").exists():
        (work / "cut.root").write_bytes((work / "sim.root").read_bytes()[:2000])
        frame = _frame(50, 0)
        frame.loc[30, ["iso1", "pt1", "pt2"]] = [np.nan, 5.0, 5.0]
        frame.to_csv(work / "nan.csv", index=False)
    before = sorted(path.name for path in work.iterdir())
    assert run(["physics", *words.format(w=work, t=tmp_path).split()]) == 2
    said = capsys.readouterr()
    assert message in said.err and len(said.err.strip().splitlines()) == 1 and "Traceback" not in said.err
    assert not list(tmp_path.iterdir()) and sorted(path.name for path in work.iterdir()) == before


def test_help_is_quick_to_read_and_imports_no_torch() -> None:
    for words in ([], ["fit"], ["apply"], ["validate"], ["export"], ["roles"]):
        result = CliRunner().invoke(physics, [*words, "--help"])
        assert result.exit_code == 0 and "sciflow physics" in result.output
    code = "import sys, sciflow_physics.commands; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_terminated_apply_cleans_up(work: Path, tmp_path) -> None:
    frame = pd.concat([_frame(400, 0)] * 500)
    frame.to_csv(tmp_path / "big.csv", index=False)
    command = [sys.executable, "-c", "from sciflow.cli import main; main()", "physics", "apply", "--model", str(work / "model")]
    command += ["--input", "big.csv", "--output", "out.parquet", "--rows-per-chunk", "500"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, env={**os.environ, "OMP_NUM_THREADS": "1"})
    deadline = time.monotonic() + 60
    while not (tmp_path / f"out.parquet.tmp-{process.pid}").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(process.pid, signal.SIGTERM)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 143 and b"Traceback" not in errors
    assert [path.name for path in tmp_path.iterdir()] == ["big.csv"]
