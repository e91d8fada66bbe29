"""One interface for priors and learned posteriors: samplers, results, the command line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
from matplotlib.figure import Figure
from sciflow_mri.commands import training_posteriors
from sciflow_mri.commands.priors import prior_of
from sciflow_mri.data import make_scan
from sciflow_mri.model.amortised import amortised_flow
from sciflow_mri.model.null_space import NullSpaceFlow
from sciflow_mri.model.null_space.training import null_space_rows
from sciflow_mri.model.pairs import training_pairs
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.posterior.acquisition import acquire
from sciflow_mri.posterior.coverage import calibrate_coverage
from sciflow_mri.posterior.drawing import default_sampler, draw_images
from sciflow_mri.posterior.kinds import image_shape, kind_of
from sciflow_mri.posterior.learned import AmortisedSampler, NullSpaceSampler
from sciflow_mri.posterior.observation import flagged
from sciflow_mri.posterior.reconstruction import reconstruct
from sciflow_mri.posterior.scan_files import write_scan
from sciflow_mri.posterior.simulations import Simulated
from sciflow_mri.posterior.volume import reconstruct_volume

import sciflow
from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.persistence import metadata

from .command_runs import run as _run

SIZE = 16
MASK = np.array([True, False] * 3 + [True] * 5 + [False] * 5)  # 8 lines
SMALL: dict[str, Any] = {"steps": 1, "hidden": 8, "features": 3, "widths": (8, 8, 8)}


def head() -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIZE)] * 2, indexing="ij")
    return torch.stack(((y.square() + 2 * x.square() < 0.8).float(), 0.3 * (y.abs() < 0.4).float()))


def scan_of(mask: np.ndarray = MASK, slices: int = 1) -> xr.Dataset:
    parts = [simulated_scan(head(), mask, coils=4, seed=seed)[0]["kspace"].values for seed in range(slices)]
    return make_scan(np.concatenate(parts), mask=mask, voxel_size_mm=(5.0, 2.0, 2.0))


@pytest.fixture(scope="module")
def models() -> dict[str, Any]:
    torch.manual_seed(0)
    pairs = training_pairs(head().expand(2, 2, SIZE, SIZE), seed=0, accelerations=(2.0, 2.0), calibration=(5, 5), coils=(4,))
    rows = null_space_rows(pairs)
    flow = NullSpaceFlow(8, (SIZE, SIZE), noise=0.05, scalars=2, maps=1, **SMALL).eval()
    flow.initialise(rows.w, rows.condition)
    flow.calibrate(rows.w, rows.condition)
    flow.spread.fill_(0.1)
    return {
        "prior": image_flow(SIZE, widths=(8,), blocks=1),
        "null-space": flow,
        "amortised": amortised_flow(SIZE, widths=(8, 16), blocks=1, heads=2, patch=2),
    }


@pytest.fixture(scope="module")
def work(models: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("learned")
    for name, model in models.items():
        sciflow.save(model, folder / name)
    write_scan(scan_of(), folder / "scan.nc")
    write_scan(scan_of(slices=2), folder / "two.nc")
    write_scan(scan_of(np.array([True] * 12 + [False] * 4)), folder / "twelve.nc")
    rng = np.random.default_rng(0)
    z, y, x = np.mgrid[:24, :24, :24] - 12.0
    for name in "ab":
        volume = 100 * (x**2 + y**2 + z**2 < 100) * rng.uniform(0.7, 1, (24, 24, 24))
        nibabel.Nifti1Image(volume.astype(np.float32), np.eye(4)).to_filename(folder / f"{name}.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    from sciflow_mri.report import writing

    monkeypatch.setattr(writing, "posterior_figure", lambda *_, **__: Figure(figsize=(1, 1)))


def test_kinds(models: dict[str, Any]) -> None:
    for kind, model in models.items():
        assert kind_of(model) == kind and image_shape(model) == (2, SIZE, SIZE)
    assert kind_of(torch.nn.Linear(1, 1)) is None
    assert isinstance(default_sampler(models["amortised"], steps=3), AmortisedSampler)
    assert default_sampler(models["null-space"], chunk=4) == NullSpaceSampler(chunk=4)
    with pytest.raises(UserError, match="the model is of kind prior, the sampler is for null-space"):
        NullSpaceSampler().draw(acquire(scan_of()), models["prior"], 1)
    with pytest.raises(UserError, match=r"kind null-space, AnnealedLangevin is for priors"):
        draw_images(acquire(scan_of()), models["null-space"], 1, sampler=default_sampler(models["prior"]))


@pytest.mark.parametrize("kind", ["null-space", "amortised"])
def test_the_same_tree_for_every_kind(kind: str, models: dict[str, Any]) -> None:
    scan = scan_of()
    tree = reconstruct(scan, models[kind], draws=5, seed=2, progress=False)
    assert dict(tree["posterior"].sizes) == {"chain": 1, "draw": 5, "image_y": SIZE, "image_x": SIZE}
    assert sorted(tree["images"].data_vars) == ["interval", "mean", "std", "zero_filled"]
    assert tree["sample_stats"]["residual"].shape == (1, 5) and tree.attrs["out_of_distribution"] == -1
    assert ("log_prob" in tree["sample_stats"]) == (kind == "null-space")
    if kind == "null-space":
        acquisition = acquire(scan)
        expected = draw_images(acquisition, models[kind], 5, seed=2)
        assert expected.log_prob is not None
        np.testing.assert_allclose(tree["sample_stats"]["log_prob"].values, expected.log_prob.numpy())
        assert "before the consistency step" in tree["sample_stats"]["log_prob"].attrs["description"]
        assert expected.certificate["explosions"].threshold == 0 and expected.statistics["exploded"] >= 0


def test_volumes_of_learned_posteriors(models: dict[str, Any], tmp_path: Path) -> None:
    scan = scan_of(slices=2)
    many = reconstruct_volume(scan, models["null-space"], tmp_path / "volume.zarr", draws=3, progress=False)
    assert len(many) == 2 and not many.failures and many[1].x.shape == (1, 3, SIZE, SIZE)
    assert many[1].certificate["explosions"].outcome in ("passed", "failed")


def test_coverage_of_a_learned_posterior(models: dict[str, Any]) -> None:
    acquisition = acquire(scan_of())
    found = calibrate_coverage(
        models["null-space"], {"a": [Simulated(acquisition, head())]}, draws=19, sampler=NullSpaceSampler()
    )
    tests = found.tests()
    assert tests and all(test.name != "calibration" for test in tests)
    told = draw_images(acquisition, models["null-space"], 3, sampler=NullSpaceSampler(calibration=tests)).certificate
    assert {test.name for test in tests} < {test.name for test in told.tests}


@pytest.mark.parametrize("kind", ["null-space", "amortised"])
def test_sample_takes_any_kind_of_folder(kind: str, work: Path) -> None:
    code, text = _run(work, "sample", "scan.nc", "--prior", kind, "-n", 4, "-o", f"result-{kind}")
    assert code == 0 and "posterior.nc" in text
    names = sorted(entry.name for entry in (work / f"result-{kind}").iterdir())
    assert names == ["certificate.json", "mean.nii.gz", "posterior.nc", "posterior.png", "report.html", "std.nii.gz"]
    certificate = Certificate.read(work / f"result-{kind}" / "certificate.json")
    assert certificate["calibration"].outcome == "not evaluated" and certificate["data residual"].value is not None
    assert "calibration was not evaluated" in text


def test_sample_refuses_a_mask_of_another_number_of_lines(work: Path) -> None:
    code, text = _run(work, "sample", "twelve.nc", "--prior", "null-space", "-n", 2, "-o", "never")
    assert (
        code == 2
        and "12 of 16 lines are measured, the null-space flow is for 8 of 16" in text
        and not (work / "never").exists()
    )
    assert _run(work, "sample", "twelve.nc", "--prior", "amortised", "-n", 2, "-o", "twelve")[0] == 0
    points = np.zeros((SIZE, SIZE), bool)
    points[4:12, 4:12] = points[::2, ::3] = True
    kspace = np.where(points, scan_of(np.ones(SIZE, bool))["kspace"].values, 0)
    write_scan(make_scan(kspace, mask=points), work / "points.nc")
    for kind in ("null-space", "amortised"):
        code, text = _run(work, "sample", "points.nc", "--prior", kind, "-n", 2, "-o", "never")
        assert code == 2 and f"the mask has points, models of kind {kind} take masks of lines" in text


def test_scans_are_looked_at_for_learned_posteriors_too(tmp_path: Path) -> None:
    """By the test of the shipped prior of that size: noise is no head."""
    mask = line_mask(64, 4, 8, seed=0)
    flow = NullSpaceFlow(48, (64, 64), noise=0.05, scalars=2, maps=1, **SMALL)
    sciflow.save(flow, tmp_path / "lines")
    white = torch.randn(2, 64, 64, generator=torch.Generator().manual_seed(0))
    scan, _ = simulated_scan(white, mask, coils=8, seed=0)
    chosen = prior_of(str(tmp_path / "lines"), scan, None)
    assert flagged(chosen.look(acquire(scan)))


def test_train_null_space_and_amortised(work: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_posteriors, "_SPREAD_SCANS", 1)
    monkeypatch.setattr(training_posteriors, "_DRAWS", 19)
    words = ("train", "a.nii.gz", "b.nii.gz", "--hold-out", "b", "--size", SIZE, "--images", 2, "--validation-images", 1,
             "--epochs", 1, "--widths", "8,8,8", "--coverage-scans", 1, "--precision", "float32")  # fmt: skip
    code, text = _run(work, *words, "--kind", "null-space", "--acceleration", 2, "--calibration-lines", 5, "-o", "lines")
    assert code == 0 and text.startswith("lines: null-space, 16 x 16, 1 steps")
    known = metadata(work / "lines")
    assert (
        known["acceleration"] == 2
        and known["batch size"] == 8
        and known["kind"] == "null-space"
        and "scores of the spreads" in known
    )
    code, text = _run(work, "sample", "scan.nc", "--prior", "lines", "-n", 3, "-o", "trained")
    names = [test["name"] for test in json.loads((work / "trained" / "certificate.json").read_text())["tests"]]
    assert code == 0 and any(name.startswith("coverage of") for name in names) and "calibration" not in names
    sciflow.save(
        image_flow(32, widths=(8,), blocks=1), work / "prior32", metadata={"training": {"a": ""}}
    )  # whose lines may be accelerated eightfold
    more = ("--kind", "amortised", "--size", 32, "--start", "prior32", "--coverage-scans", 0, "-o", "amortised2")
    code, text = _run(work, *words, *more)
    assert code == 0, text
    assert kind_of(sciflow.load(work / "amortised2", trust=("sciflow_mri",))) == "amortised"
    assert metadata(work / "amortised2")["begun with"]["model"] == "prior32"
    swapped = ["a" if word == "b" else word for word in (*words, *more)]
    code, text = _run(work, *swapped)
    assert code == 2 and "--start prior32: has seen a, who is held out" in text
    for extra, message in (
        (("--kind", "null-space", "--acceleration", 8), "measures 2 of 16 lines"),
        (("--kind", "null-space", "--start", "prior"), "only amortised flows start from a prior"),
        (("--kind", "amortised", "--start", "nowhere"), "--start nowhere: no model folder"),
        (("--kind", "amortised", "--start", "lines"), "is a NullSpaceFlow over (2, 8, 16), not a prior over (2, 16, 16)"),
        (("--kind", "amortised", "--start", "prior"), "--start prior: does not say whom it has seen"),
    ):
        code, text = _run(work, *words, *extra, "-o", "never")
        assert code == 2 and message in text and not (work / "never").exists()
