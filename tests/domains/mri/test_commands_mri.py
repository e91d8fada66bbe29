"""The command line: what works, exit codes, one line for what does not, nothing half-written."""

from __future__ import annotations

import json
import runpy
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from sciflow_mri.commands.priors import prior_of
from sciflow_mri.data import make_scan, read
from sciflow_mri.data.formats.fastmri import write_fastmri
from sciflow_mri.model import shipped
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.posterior.scan_files import read_scan

import sciflow
from sciflow.certificate import Certificate
from sciflow.certificate import Test as NamedTest
from sciflow.errors import UserError
from sciflow.persistence import metadata
from sciflow.posterior.examination import examined

from .command_runs import run as _run

SIZE, SLICES = 16, 3
RESULT = ["certificate.json", "mean.nii.gz", "posterior.nc", "posterior.png", "report.html", "std.nii.gz"]
WHOLE = ("test_sample_evaluate_and_report", "test_a_local_cluster_draws_the_same")  # with pictures and all steps
MAIN = "import sys; from sciflow_mri.commands import mri; mri()"


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """A full raw file of three slices at twice the size (full.h5), one undersampled file (scan.h5), a prior."""
    folder = tmp_path_factory.mktemp("mri")
    torch.manual_seed(0)
    sciflow.save(image_flow(SIZE, widths=(8,), blocks=1), folder / "prior")
    sciflow.save(image_flow(8, widths=(8,), blocks=1), folder / "small")
    n = 2 * SIZE
    y, x = np.mgrid[:n, :n] - n / 2
    image = torch.zeros(2, n, n)
    image[0] = torch.from_numpy(np.exp(-(x**2 + 2 * y**2) / 100)).float()
    every = np.ones(n, bool)
    parts = [simulated_scan(image, every, coils=4, seed=seed)[0]["kspace"].values for seed in range(SLICES)]
    full = make_scan(np.concatenate(parts), mask=every, voxel_size_mm=(5.0, 2.0, 2.0))
    write_fastmri(folder / "full.h5", full, mask=False)
    assert _run(folder, "prepare", "full.h5", "--size", SIZE, "--acceleration", 2, "--calibration", 6, "-o", "three.nc")[0] == 0
    words = ("--size", SIZE, "--acceleration", 2, "--calibration", 6, "--slices", "1")
    assert _run(folder, "prepare", "full.h5", *words, "-o", "one.nc")[0] == 0
    return folder


@pytest.fixture(autouse=True)
def quick(request, monkeypatch):
    """An empty picture and fewer steps, but where a test asks for the whole."""
    if request.node.name in WHOLE:
        return
    from sciflow_mri.commands import work as verbs
    from sciflow_mri.report import writing

    few = {"coarse": 3, "levels": ((0.4, 1), (0.1, 1)), "states": 0}
    whole = verbs.default_sampler
    monkeypatch.setattr(verbs, "default_sampler", lambda prior, **settings: whole(prior, **settings, **few))
    monkeypatch.setattr(writing, "posterior_figure", lambda *_, **__: Figure(figsize=(1, 1)))


def _sample(folder: Path, scan: str, output: str, *words: object) -> tuple[int, str]:
    return _run(folder, "sample", scan, "--prior", "prior", "-n", 4, "--precision", "float32", "-o", output, *words)


def _script(folder: Path, *words: object, prefix: str = "") -> subprocess.Popen:
    command = [sys.executable, "-c", prefix + MAIN, *map(str, words)]
    return subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_help_imports_nothing_heavy(tmp_path):
    script = (
        "import sys; from click.testing import CliRunner; from sciflow_mri.commands import mri; "
        "[CliRunner().invoke(mri, [*verb, '--help']) for verb in ([], ['sample'], ['train'], ['prepare'], ['evaluate'])]; "
        "heavy = {'torch', 'numpy', 'xarray', 'matplotlib', 'nibabel', 'h5py'} & set(sys.modules); assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


def test_prepare_says_what_it_found(work):
    scan = read_scan(work / "one.nc")
    assert dict(scan.sizes) == {"slice": 1, "coil": 4, "ky": SIZE, "kx": SIZE} and int(scan["mask"].sum()) == 8
    assert scan.attrs["retrospective"].endswith("undersampled to 8 of 16 lines") and scan.attrs["source"] == "full.h5"
    code, text = _run(work, "prepare", "full.h5", "-o", "plain.nc")
    assert code == 0 and "3 slices of 32 x 32, 4 coils, 32 of 32 lines, R = 1" in text and "voxels 5 x 2 x 2 mm" in text


def test_sample_evaluate_and_report(work):
    code, text = _sample(work, "one.nc", "result", "--seed", 3)
    assert code == 0 and "posterior.nc" in text and "result: " in text
    assert sorted(entry.name for entry in (work / "result").iterdir()) == RESULT
    tree = sciflow.read_draws(work / "result" / "posterior.nc")
    assert tree["posterior"].sizes["draw"] == 4 and tree.attrs["seed"] == 3 and tree.attrs["prior"] == "prior"
    verdict = examined(tree).verdict
    assert Certificate.read(work / "result" / "certificate.json").verdict == verdict
    assert nibabel.load(work / "result" / "mean.nii.gz").header.get_zooms() == (4, 4, 5)

    code, text = _run(work, "evaluate", "result", "--truth", "full.h5", "--slices", "1")
    assert code == 0 and "PSNR" in text and "coverage 95 %" in text
    code, other = _run(work, "evaluate", "result", "--truth", "full.h5")  # slice 0, but the result is one of slice 1
    assert code == 2 and "full.h5: slice 0 leaves" in other and "slice 1 does: choose it (--slices 1)" in other
    assert json.loads((work / "result" / "evaluation.json").read_text())["truth"] == "full.h5"
    found = json.loads((work / "result" / "evaluation.json").read_text())
    assert found["truth"] == "full.h5" and 0 <= found["values"]["coverage 80 %"] <= 1
    assert "Against the fully sampled scan" in (work / "result" / "report.html").read_text()
    page = (work / "result" / "report.html").read_bytes()
    (work / "result" / "report.html").unlink()
    assert _run(work, "report", "result", "--require", "pass")[0] == (0 if verdict == "passed" else 3)
    assert (work / "result" / "report.html").read_bytes() == page  # with truth and figures


def test_a_new_result_removes_what_speaks_of_the_old_one(work):
    assert _sample(work, "one.nc", "renewed")[0] == 0
    assert "renewed: holds the result of one slice" in _sample(work, "three.nc", "renewed", "--volume")[1]
    assert _run(work, "evaluate", "renewed", "--truth", "full.h5", "--slices", "1")[0] == 0
    assert sorted(entry.name for entry in (work / "renewed").iterdir()) == sorted([*RESULT, "evaluation.json", "truth.nii.gz"])
    assert _sample(work, "one.nc", "renewed", "--seed", 4)[0] == 0
    assert sorted(entry.name for entry in (work / "renewed").iterdir()) == RESULT


def test_settle_doubles_the_moves(work, monkeypatch):
    from sciflow_mri.commands import work as verbs
    from sciflow_mri.posterior.drawing import default_sampler

    few = {"coarse": 2, "levels": ((0.4, 1),), "states": 4, "thin": 1}
    monkeypatch.setattr(verbs, "default_sampler", lambda prior, **settings: default_sampler(prior, **settings, **few))
    assert _sample(work, "one.nc", "settled", "--settle", 1)[0] == 0
    tests = json.loads((work / "settled" / "certificate.json").read_text())["tests"]
    assert [test["value"] for test in tests if test["name"] == "doublings"] == [1.0]


def test_sample_takes_raw_files_directly(work):
    words = ("--size", SIZE, "--acceleration", 2, "--calibration", 6, "--slices", "1", "--seed", 3)
    assert _sample(work, "full.h5", "direct", *words)[0] == 0
    assert _sample(work, "one.nc", "prepared", "--seed", 3)[0] == 0
    x, y = (sciflow.read_draws(work / name / "posterior.nc")["posterior"]["x"].values for name in ("direct", "prepared"))
    np.testing.assert_array_equal(x, y)


def test_require_and_force_decide_the_exit_code(work, monkeypatch):
    from sciflow_mri.commands import work as verbs

    def flagging(word, scan, device):
        test = NamedTest("acquisition like those of the prior", 9.0, 3.0, "<=")
        return prior_of(word, scan, device)._replace(look=lambda acquisition: [test])

    code, text = _sample(work, "one.nc", "strict", "--require", "pass")
    verdict = Certificate.read(work / "strict" / "certificate.json").verdict
    assert code == (0 if verdict == "passed" else 3) and ("required is 'pass'" in text) == (code == 3)
    monkeypatch.setattr(verbs, "prior_of", flagging)
    code, text = _sample(work, "one.nc", "odd")
    assert code == 3 and "out of the distribution of the prior, the picture carries a warning" in text
    assert sorted(entry.name for entry in (work / "odd").iterdir()) == RESULT
    assert "Warning: out of distribution" in (work / "odd" / "report.html").read_text()
    code, text = _sample(work, "one.nc", "odd", "--force")
    assert code == 0 and "kept by --force" in text
    assert _run(work, "report", "odd")[0] == 3 and _run(work, "report", "odd", "--force")[0] == 0
    code, text = _sample(work, "three.nc", "oddly", "--volume")
    assert code == 3 and "out of distribution: slices 0, 1, 2" in (work / "oddly" / "report.html").read_text()


def test_a_volume_and_its_files(work):
    code, text = _sample(work, "three.nc", "volume", "--volume")
    names = ["certificate.json", "images.nc", "mean.nii.gz", "posterior.png", "posterior.zarr", "report.html", "std.nii.gz"]
    assert code == 0 and sorted(entry.name for entry in (work / "volume").iterdir()) == names, text
    mean = nibabel.load(work / "volume" / "mean.nii.gz")
    assert mean.shape == (SIZE, SIZE, SLICES) and mean.header.get_zooms() == (4, 4, 5)
    page = (work / "volume" / "report.html").read_text()
    assert "<h2>Slices</h2>" in page
    code, text = _sample(work, "three.nc", "volume", "--volume", "--seed", 9)
    assert code == 2 and "holds other draws" in text and "--again" in text and "resume" not in text
    code, text = _sample(work, "one.nc", "volume")
    assert code == 2 and text == "volume: holds the result of a volume: give another folder for that of one slice, or remove it"
    assert _run(work, "report", "volume")[0] == 2
    code, text = _run(work, "evaluate", "volume", "--truth", "full.h5")
    assert code == 0 and "over slices" in text
    slices = json.loads((work / "volume" / "evaluation.json").read_text())["slices"]
    alone = _sample(work, "three.nc", "alone", "--slice", 1)
    assert list(slices) == ["0", "1", "2"] and alone[0] == 0
    _run(work, "evaluate", "alone", "--truth", "full.h5")
    zero = json.loads((work / "alone" / "evaluation.json").read_text())["values"]["PSNR zero-filled"]
    assert zero == pytest.approx(slices["1"]["PSNR zero-filled"], abs=1e-3)


def test_a_killed_volume_goes_on(work):
    """SIGKILL after the first slice: nothing looks finished; the same command keeps that slice and draws the others."""
    words = ("sample", "three.nc", "--prior", "prior", "--precision", "float32", "--volume", "-n", 4, "-o", "killed")
    slow = (
        "import time; from sciflow_mri.commands import work as w; from sciflow_mri.posterior import volume as v; "
        "d, call = w.default_sampler, v.draw_images; "
        "w.default_sampler = lambda p, **s: d(p, **s, coarse=3, levels=((0.4, 1), (0.1, 1)), states=0); "
        "v.draw_images = lambda *a, **k: (time.sleep(1), call(*a, **k))[1]; "
    )
    process = _script(work, *words, prefix=slow)
    partial = work / "killed" / "posterior.zarr.partial"
    deadline = time.monotonic() + 60
    while not list(partial.glob("progress/chunk-*.json")) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert [entry.name for entry in (work / "killed").iterdir()] == ["posterior.zarr.partial"]
    done = len(list(partial.glob("progress/chunk-*.json")))
    assert 1 <= done < SLICES
    assert _run(work, *words)[0] == 0
    assert not partial.exists()
    assert _sample(work, "three.nc", "whole", "--volume")[0] == 0
    killed, whole = (
        sciflow.read_draws(work / name / "posterior.zarr")["posterior"]["x"].values for name in ("killed", "whole")
    )
    np.testing.assert_array_equal(killed, whole)


@pytest.mark.parametrize("verb", [pytest.param("prepare", marks=pytest.mark.slow), "sample"])
def test_a_full_disk_gives_one_line_and_leaves_nothing_half_written(work, verb, tmp_path):
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
    limit += "import sciflow_mri.commands.work; resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000)); "
    words = {
        "prepare": ("prepare", work / "full.h5", "-o", tmp_path / "scan.nc"),
        "sample": ("sample", work / "one.nc", "--prior", work / "prior", "-n", 4, "-o", tmp_path / "out"),
    }[verb]
    process = _script(work, *words, prefix=limit)
    _, errors = process.communicate(timeout=120)
    last = errors.strip().splitlines()[-1]
    assert process.returncode != 0 and "cannot be written: File too large" in last and "UserError" in last
    assert not [entry for entry in tmp_path.rglob("*") if entry.is_file()]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("prepare", "none.h5", "-o", "a.nc"), "none.h5: no such file"),
        (("prepare", "full.h5", "-o", "a.npz"), "--output a.npz: a prepared scan is written as netCDF"),
        (("prepare", "full.h5", "--size", 99, "-o", "a.nc"), "32 x 32 points"),
        (("prepare", "full.h5", "--slices", "1-", "-o", "a.nc"), "--slices 1-: numbers and ranges"),
        (("prepare", "full.h5", "--acceleration", 2, "--mask", "m.npy", "-o", "a.nc"), "--acceleration and --mask both"),
        (("prepare", "full.h5", "--mask", "m.npy", "-o", "a.nc"), "m.npy: cannot be read as a mask in a .npy file"),
        (("prepare", "full.h5", "--acceleration", 16, "-o", "a.nc"), "fewer than the 8 calibration lines"),
        (("prepare", "one.nc", "--transpose", "-o", "a.nc"), "one.nc: is prepared already: --transpose is for raw files"),
        (("prepare", "full.h5", "--acceleration", 8, "--calibration", 2, "-o", "a.nc"), "no calibration lines: only 2 fully"),
        (("prepare", "cut.h5", "-o", "a.nc"), "cut.h5: "),
        (("sample", "cut.h5", "-o", "a"), "cut.h5: "),
        (
            ("sample", "three.nc", "--prior", "prior", "-o", "a"),
            "has 3 slices: choose one with --slice 0 ... 2, or say --volume",
        ),
        (("sample", "three.nc", "--prior", "prior", "--slice", 5, "-o", "a"), "there is no slice 5"),
        (("sample", "three.nc", "--prior", "prior", "--slice", 1, "--volume", "-o", "a"), "--slice 1 and --volume"),
        (("sample", "one.nc", "--prior", "prior", "--dask", "local", "-o", "a"), "--dask and --again are for volumes"),
        (("sample", "one.nc", "--prior", "nowhere", "-o", "a"), "--prior nowhere: no model folder"),
        (
            ("sample", "one.nc", "--prior", "small", "-o", "a"),
            "16 x 16 points, the prior small 8 x 8: crop the scan (--size 8)",
        ),
        (("sample", "one.nc", "--prior", "512", "-o", "a"), "there is no shipped prior for images of 512 x 512; there are: "),
        (("sample", "one.nc", "--prior", "prior", "--device", "nonsense", "-o", "a"), "device 'nonsense' cannot be used here"),
        (("sample", "one.nc", "--prior", "prior", "-o", "one.nc/a"), "one.nc"),
        (("evaluate", "prior", "--truth", "full.h5"), "prior: no result: there is no posterior.nc"),
        (("report", "none"), "none: no result"),
        (("train", "a.nii", "--hold-out", "b", "-o", "m"), "--hold-out b: nobody is called so; there are a"),
        (("train", "a.nii", "--hold-out", "a", "-o", "m"), "--hold-out leaves nobody to train on"),
        (("train", "a.nii", "x/a.nii.gz", "--hold-out", "a", "-o", "m"), "are both called a: one volume per person"),
        (("train", "a.nii", "b.nii", "--hold-out", "a", "-o", "m"), "a.nii: no such file"),
        (("train", "a.nii", "b.nii", "--hold-out", "a", "--widths", "8;9", "-o", "m"), "--widths 8;9: positive integers"),
        (("train", "a.nii", "b.nii", "--hold-out", "a", "--licence", "c=free", "-o", "m"), "--licence c=free: say NAME=TEXT"),
        (("train", "a.nii", "b.nii", "--hold-out", "a", "-o", "x/y/m"), "x/y does not exist"),
        (("train", "a.nii", "b.nii", "--hold-out", "a", "--start", "x", "-o", "m"), "--start x: no model folder"),
    ],
)
def test_what_is_wrong_is_one_line_and_leaves_nothing(work, words, message):
    if not (work / "cut.h5").exists():
        (work / "cut.h5").write_bytes((work / "full.h5").read_bytes()[:5000])
    before = sorted(entry for entry in work.rglob("*"))
    code, text = _run(work, *words)
    assert code == 2 and message in text
    made = [entry for entry in sorted(work.rglob("*")) if entry not in before and entry.is_file()]
    assert not made


def test_a_result_with_other_draws_is_not_reported(work):
    assert _sample(work, "one.nc", "changed")[0] == 0
    path = work / "changed" / "posterior.nc"
    tree = sciflow.read_draws(path)
    values = tree["posterior"]["x"].values.copy()
    values[0, 0, 0, 0] += 1
    tree["posterior"]["x"] = tree["posterior"]["x"].copy(data=values)
    text = tree.attrs.pop("certificate")
    with xr.open_datatree(sciflow.to_netcdf(tree, path), engine="h5netcdf", phony_dims="sort") as opened:
        forged = opened.load()
    forged.attrs["certificate"] = text
    path.write_bytes(forged.to_netcdf(None, engine="h5netcdf"))
    code, text = _run(work, "report", "changed")
    assert code == 2 and "the draws are not those of their certificate" in text


def _head(seed: int) -> nibabel.Nifti1Image:
    z, y, x = np.mgrid[:24, :24, :24] - 11.5
    inside = (z**2 + y**2 + x**2 < 110).astype(np.float32)
    return nibabel.Nifti1Image(
        inside * (80 + 10 * np.random.default_rng(seed).random((24, 24, 24), dtype=np.float32)), np.eye(4)
    )


def test_train_writes_a_model_that_sample_takes(work, tmp_path):
    for number, name in enumerate("ab"):
        nibabel.save(_head(number), tmp_path / f"{name}.nii")
    words = ("--size", SIZE, "--images", 32, "--validation-images", 8, "--epochs", 2, "--widths", 8, "--blocks", 1)
    words += ("--precision", "float32", "--licence", "a=CC0", "--checkpoint", "state", "--coverage-scans", 1)
    train = ("train", "a.nii", "b.nii", "--hold-out", "b", *words, "-o", "model")
    code, text = _run(tmp_path, *train)
    assert code == 0 and "16 x 16, 4 steps" in text and "on b" in text and "takes two people" in text
    known = metadata(tmp_path / "model")
    assert list(known["training"]) == ["a"] and list(known["held out"]) == ["b"] and known["licence"] == "a: CC0; b: not stated"
    assert known["minutes"] >= 0 and len(known["history"]) == 2
    covered = metadata(tmp_path / "model" / "coverage")
    assert covered["people"] == ["b"] and covered["scans_per_person"] == 1 and 0 <= covered["raw"][0][0] <= 1
    readme = (tmp_path / "model" / "README.md").read_text()
    assert "validated on b, of whom no training image was made" in readme and "a: CC0" in readme and "minutes" in readme
    weights = (tmp_path / "model" / "weights.safetensors").read_bytes()
    assert _run(tmp_path, *train)[0] == 0  # from the checkpoint: nothing is left to do
    assert (tmp_path / "model" / "weights.safetensors").read_bytes() == weights
    code, text = _run(work, "sample", "one.nc", "--prior", tmp_path / "model", "-n", 4, "--precision", "float32", "-o", "own")
    assert code == 0, text
    again = ("train", "a.nii", "b.nii", "--hold-out", "b", "--size", SIZE, "--images", 16, "--validation-images", 8)
    again += ("--epochs", 1, "--precision", "float32", "--coverage-scans", 0, "--start", "model", "-o", "later")
    code, text = _run(tmp_path, *again)
    begun = metadata(tmp_path / "later")["begun with"]
    assert code == 0 and begun["model"] == "model" and begun["history"] == known["history"], text
    first, later = (sciflow.load(tmp_path / name).state_dict() for name in ("model", "later"))
    assert list(first) == list(later) and not all(torch.equal(first[name], later[name]) for name in first)
    code, text = _run(tmp_path, *("a" if word == "b" else word for word in again))
    assert code == 2 and "--start model: has seen a, who is held out" in text
    code, text = _run(tmp_path, *again, "--size", 32)
    assert code == 2 and "not a prior over (2, 32, 32)" in text


def test_shipped_priors_are_listed(tmp_path, monkeypatch):
    monkeypatch.setattr(shipped, "_weights", lambda: tmp_path / "weights")
    with pytest.raises(UserError, match="no shipped prior for images of 64 x 64; there are: none"):
        shipped.shipped_prior(64)
    for size in (32, 16):
        sciflow.save(image_flow(size, widths=(8,), blocks=1), tmp_path / "weights" / f"prior{size}")
    assert shipped.shipped_sizes() == [16, 32]
    assert tuple(shipped.shipped_prior(32).event_shape) == (2, 32, 32)
    with pytest.raises(UserError, match=r"there are: 16 x 16, 32 x 32\. Crop the scan"):
        shipped.shipped_prior(64)


def test_the_embedded_scan():
    from sciflow_mri.demo import embedded

    measured, full = embedded()
    assert measured.stat().st_size + full.stat().st_size < 600_000
    [scan], [truth] = read(measured), read(full)
    assert dict(scan.sizes) == {"slice": 1, "coil": 8, "ky": 64, "kx": 64} and int(scan["mask"].sum()) == 16
    assert scan.attrs["calibration"] == [28, 36] and truth["mask"].values.all()
    mask = scan["mask"].values
    np.testing.assert_array_equal(scan["kspace"].values[:, :, mask], truth["kspace"].values[:, :, mask])
    assert not scan["kspace"].values[:, :, ~mask].any()


@pytest.mark.data
def test_the_embedded_scan_is_what_its_script_makes(science_data, tmp_path, monkeypatch):
    script = Path(__file__).parents[3] / "data" / "make_mri_demo.py"
    monkeypatch.setattr(sys, "argv", [str(script), str(tmp_path)])
    runpy.run_path(str(script), run_name="__main__")
    from sciflow_mri.demo import embedded

    for path in embedded():
        [again], [here] = read(tmp_path / path.name), read(path)
        np.testing.assert_allclose(again["kspace"].values, here["kspace"].values, atol=1e-5)


def test_the_demo_runs_with_what_is_shipped(tmp_path, monkeypatch):
    """With a prior that has learned nothing, to see the files."""
    from sciflow_mri import demo

    monkeypatch.setattr(shipped, "_weights", lambda: tmp_path / "weights")
    sciflow.save(image_flow(64, widths=(8,), blocks=1, patch=4), tmp_path / "weights" / "prior64")
    monkeypatch.setattr(demo, "DRAWS", 4)
    files = demo.run(tmp_path / "out")
    assert {"posterior.nc", "posterior.png", "evaluation.json", "report.html"} <= {file.name for file in files}
    assert all(file.is_file() for file in files)


@pytest.mark.slow
def test_a_local_cluster_draws_the_same(work):
    assert _sample(work, "three.nc", "series", "--volume")[0] == 0
    words = ("--prior", "prior", "-n", 4, "--precision", "float32", "--volume", "--dask", "local", "--workers", 2)
    process = _script(
        work, "sample", "three.nc", *words, "-o", "cluster", prefix="if __name__ != '__main__': raise SystemExit\n"
    )
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    x, y = (sciflow.read_draws(work / name / "posterior.zarr")["posterior"]["x"].values for name in ("series", "cluster"))
    np.testing.assert_array_equal(x, y)
