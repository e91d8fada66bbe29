"""One slice: summaries of known draws, the tree and its files, NIfTI placement, the warning of a flagged scan."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import nibabel
import numpy as np
import pytest
import torch
import xarray as xr
from sciflow_mri.data import make_scan
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.plots import posterior_figure
from sciflow_mri.posterior.acquisition import acquire
from sciflow_mri.posterior.drawing import default_sampler, draw_images
from sciflow_mri.posterior.images import image_group, pixel_summary
from sciflow_mri.posterior.nifti import placement, write_nifti
from sciflow_mri.posterior.reconstruction import checked_device, reconstruct
from sciflow_mri.posterior.reference import Reference, evaluate, reference
from sciflow_mri.posterior.results import result_tree, zero_filled
from sciflow_mri.posterior.scan_files import read_scan, write_scan
from sciflow_mri.report import write_results

import sciflow
from sciflow.certificate import Test as NamedTest
from sciflow.errors import UserError
from sciflow.persistence import fingerprint
from sciflow.posterior.examination import examined

SIZE, COILS = 16, 4
AFFINE = np.array([[-2.0, 0, 0, 5], [0, 0, 4, -3], [0, 3.0, 0, 7], [0, 0, 0, 1]])


@pytest.fixture(scope="module")
def prior():
    torch.manual_seed(0)
    return image_flow(SIZE, widths=(8,), blocks=1).eval()


@pytest.fixture(scope="module")
def scan() -> xr.Dataset:
    """Two slices of a blob with an affine, every second line."""
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    image = torch.zeros(2, SIZE, SIZE)
    image[0] = torch.from_numpy(np.exp(-(x**2 + 2 * y**2) / 30)).float()
    mask = line_mask(SIZE, 2, 6, seed=1)
    parts = [simulated_scan(image, mask, coils=COILS, seed=seed)[0]["kspace"].values for seed in (1, 2)]
    return make_scan(
        np.concatenate(parts), mask=mask.numpy(), voxel_size_mm=(4.0, 3.0, 2.0), affine=AFFINE,
        attrs={"source": "blob.h5", "source_sha256": "ab" * 32, "format": "simulated"},
    )  # fmt: skip


@pytest.fixture(scope="module")
def sampler(prior):
    return default_sampler(prior, coarse=3, levels=((0.4, 1), (0.1, 1)), states=4, bf16=False)


@pytest.fixture(scope="module")
def tree(scan, prior, sampler):
    return reconstruct(scan, prior, slice=1, draws=6, seed=3, sampler=sampler)


def test_the_summary_of_known_draws():
    """1000 draws whose magnitudes are 1/1000, ..., 1: quantiles q at q, the mean at (n + 1) / 2n, phases kept."""
    magnitude = (np.arange(1000) + 1) / 1000
    draws = (magnitude * 1j)[np.random.default_rng(0).permutation(1000)].reshape(1000, 1, 1)
    found = pixel_summary(draws)
    assert found["mean"].item() == pytest.approx(0.5005j)
    assert found["std"].item() == pytest.approx(np.sqrt((1000**2 - 1) / 12) / 1000 * np.sqrt(1000 / 999))
    np.testing.assert_allclose(found["interval"][:, :, 0, 0], [[0.25, 0.75], [0.1, 0.9], [0.025, 0.975]], atol=1.5e-3)


@pytest.mark.parametrize("draws", [40, 64, 200])
def test_intervals_of_exact_draws_hold_the_truth_as_often_as_they_say(draws):
    """Draws and truth of one distribution; 40000 pixels: four standard errors are 1 % at a level of one half, so that the false
    alarm rate of the nine numbers is below 1e-3. Quantiles of 32 draws alone would hold it in 90 % for 95 %."""
    rng = np.random.default_rng(draws)
    truth, *others = 10 + rng.normal(size=(draws + 1, 200, 200))
    low, high = pixel_summary(np.array(others) + 0j)["interval"].swapaxes(0, 1)
    share = ((low <= truth) & (truth <= high)).mean((1, 2))
    np.testing.assert_allclose(share, [0.5, 0.8, 0.95], atol=0.01)


def test_one_draw_has_no_spread():
    found = pixel_summary(np.full((1, 2, 2), 3 + 4j))
    assert (found["std"] == 0).all() and (found["interval"] == 5).all()


def test_the_tree_holds_everything(tree, scan, prior):
    x = tree["posterior"]["x"]
    assert x.dims == ("chain", "draw", "image_y", "image_x") and x.shape == (1, 6, SIZE, SIZE) and x.dtype == np.complex64
    images = tree["images"]
    np.testing.assert_allclose(images["mean"].values, x.values[0].mean(0))
    np.testing.assert_allclose(images["std"].values, np.abs(x.values[0]).std(0, ddof=1), rtol=1e-5)
    assert images["interval"].dims == ("level", "bound", "image_y", "image_x")
    assert images["level"].values.tolist() == [0.5, 0.8, 0.95]
    assert tree["constant_data"]["maps"].shape == (COILS, SIZE, SIZE) and tree["constant_data"]["sigma"].shape == (COILS,)
    np.testing.assert_array_equal(tree["observed_data"]["kspace"].values, scan["kspace"].values[1])
    np.testing.assert_array_equal(tree["observed_data"]["mask"].values, scan["mask"].values)
    assert tree["sample_stats"]["residual"].shape == (1, 6)
    attrs = tree.attrs
    assert attrs["acceleration"] == 2 and attrs["seed"] == 3 and attrs["slice"] == 1 and attrs["out_of_distribution"] == -1
    hashes = json.loads(attrs["hashes"])
    assert hashes["scan"] == "ab" * 32 and hashes["prior"] == fingerprint(prior) and "kspace" in hashes
    assert json.loads(attrs["versions"])["sciflow"] and attrs["sigma"] > 0 and attrs["scale"] > 0
    assert examined(tree).subject == "blob.h5, slice 1"
    assert images["image_y"].values[SIZE // 2] == 0 and images["image_y"].attrs["units"] == "mm"
    assert float(images["image_x"][1] - images["image_x"][0]) == 2.0


def test_residuals_are_those_of_the_draws(tree, scan):
    """Recomputed from the files' own k-space, maps and variance: |y - M F S x|^2 / V per real number."""
    constants, observed = tree["constant_data"], tree["observed_data"]
    x = tree["posterior"]["x"].values[0]
    mask = observed["mask"].values
    coils = x[:, None] * constants["maps"].values
    axes = (-2, -1)
    model = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(coils, axes), norm="ortho"), axes)
    gap = (model - observed["kspace"].values)[:, :, mask] / np.sqrt(constants["variance"].values[:, mask, None])
    expected = (np.abs(gap) ** 2).sum((1, 2, 3)) / (2 * gap[0].size)
    np.testing.assert_allclose(tree["sample_stats"]["residual"].values[0], expected, rtol=1e-3)


def test_zero_filled_is_the_combined_inverse_transform(scan, tree):
    """With the maps of calibration lines, whatever maps the draws have."""
    maps, kspace = acquire(scan, 1).maps.numpy(), scan["kspace"].values[1]
    assert not np.allclose(maps, tree["constant_data"]["maps"].values, atol=1e-2)
    axes = (-2, -1)
    coils = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes), norm="ortho"), axes)
    np.testing.assert_allclose(tree["images"]["zero_filled"].values, (maps.conj() * coils).sum(0), atol=1e-5)


def test_chunks_draw_the_same(scan, prior, sampler, tree):
    settings = {"coarse": 3, "levels": ((0.4, 1), (0.1, 1)), "states": 4, "bf16": False}
    again = reconstruct(scan, prior, slice=1, draws=6, seed=3, sampler=default_sampler(prior, chunk=4, **settings))
    np.testing.assert_allclose(again["posterior"]["x"].values, tree["posterior"]["x"].values, atol=1e-4)


def test_files_open_and_keep_their_place(tree, tmp_path):
    files = write_results(tree, tmp_path / "out")
    assert sorted(file.name for file in files) == sorted(entry.name for entry in (tmp_path / "out").iterdir())
    back = sciflow.read_draws(tmp_path / "out" / "posterior.nc")
    np.testing.assert_array_equal(back["posterior"]["x"].values, tree["posterior"]["x"].values)
    assert back["images"]["mean"].dtype == np.complex64
    assert examined(back).verdict == examined(tree).verdict
    mean, std = (nibabel.load(tmp_path / "out" / name) for name in ("mean.nii.gz", "std.nii.gz"))
    assert mean.shape == (SIZE, SIZE, 1) and mean.header["descrip"].item() == b"posterior mean"
    np.testing.assert_allclose(np.asarray(mean.dataobj)[..., 0].T, np.abs(tree["images"]["mean"].values), rtol=1e-6)
    np.testing.assert_allclose(np.asarray(std.dataobj)[..., 0].T, tree["images"]["std"].values, rtol=1e-6)
    expected = AFFINE.copy()
    expected[:3, 3] += AFFINE[:3, 2]  # the second slice
    np.testing.assert_allclose(mean.affine, expected)
    np.testing.assert_allclose(mean.header.get_zooms(), (2, 3, 4))
    page = (tmp_path / "out" / "report.html").read_text()
    assert "not for diagnosis" in page and "data:image/png;base64" in page and "blob.h5, slice 1" in page


def test_arviz_opens_the_file(tree, tmp_path):
    arviz = pytest.importorskip("arviz_base")
    write_results(tree, tmp_path)
    with xr.open_datatree(tmp_path / "posterior.nc", engine="h5netcdf", phony_dims="sort") as opened:
        flat = arviz.extract(opened, group="posterior", var_names="x")
        assert flat.sizes["sample"] == 6
        summary = np.asarray(opened["sample_stats"]["residual"])
    assert summary.shape == (1, 6)


@pytest.mark.parametrize(
    ("attrs", "diagonal", "text"),
    [
        ({"affine": AFFINE.ravel()}, None, ""),
        ({"voxel_size_mm": [4.0, 3.0, 2.0]}, [2, 3, 4], "orientation and origin unknown"),
        ({}, [1, 1, 1], "voxel size and orientation unknown: 1 voxel = 1 mm"),
    ],
)
def test_what_is_unknown_of_the_place_is_said_in_the_header(attrs, diagonal, text, tmp_path):
    affine, said = placement(attrs)
    assert said == text
    np.testing.assert_array_equal(affine, AFFINE if diagonal is None else np.diag([*diagonal, 1]))
    image = nibabel.load(write_nifti(tmp_path / "a.nii.gz", np.ones((3, 2)), attrs, "posterior mean"))
    assert image.header["descrip"].item().decode() == "; ".join(filter(None, ("posterior mean", text)))
    assert int(image.header["sform_code"]) == (1 if diagonal is None else 0) and image.shape == (2, 3, 1)


def test_the_picture_has_scope_verdict_and_warning(tree):
    def texts(drawing) -> str:
        words = [drawing.get_suptitle(), *(entry.get_text() for ax in drawing.axes for entry in ax.texts)]
        return " ".join([*words, *(ax.get_title() for ax in drawing.axes), *(ax.get_ylabel() for ax in drawing.axes)])

    plain = texts(posterior_figure(tree))
    verdict = examined(tree).verdict.upper()
    assert f"certificate: {verdict} - relative to this prior and model, not for diagnosis" in plain
    assert "OUT OF DISTRIBUTION" not in plain and "R = 2, 8 of 16 lines" in plain
    for title in ("zero-filled", "mean of 6 draws", "standard deviation", "95 % interval", "draw 0", "draw 2", "[mm]"):
        assert title in plain
    assert "magnitude [units of the scan]" in plain
    flagged = tree.copy()
    flagged.attrs = {**tree.attrs, "out_of_distribution": 1}
    assert "WARNING: OUT OF DISTRIBUTION" in texts(posterior_figure(flagged))
    assert "fully sampled" in texts(posterior_figure(tree, truth=np.ones((SIZE, SIZE))))


def test_magnitudes_share_one_scale(tree):
    drawing = posterior_figure(tree)
    shown = {ax.get_title(): ax.images[0] for ax in drawing.axes if ax.images and ax.get_title()}
    limits = {shown[name].get_clim() for name in ("zero-filled", "mean of 6 draws", "draw 0", "draw 1", "draw 2")}
    assert len(limits) == 1


def test_a_look_that_flags_is_in_certificate_tree_and_picture(scan, prior, sampler, tmp_path):
    seen = []

    def look(acquisition):
        seen.append(acquisition.label)
        return [NamedTest("acquisition like those of the prior", 9.0, 3.0, "<=")]

    tree = reconstruct(scan, prior, draws=2, sampler=sampler, observation=look)
    assert seen == ["blob.h5, slice 0"] and tree.attrs["out_of_distribution"] == 1
    assert tree.attrs["warning"].startswith("out of distribution") and examined(tree).verdict == "failed"
    write_results(tree, tmp_path)
    assert "Warning: out of distribution" in (tmp_path / "report.html").read_text()
    calm = [NamedTest("acquisition like those of the prior", 1.0, 3.0, "<=")]
    assert reconstruct(scan, prior, draws=2, sampler=sampler, observation=lambda _: calm).attrs["out_of_distribution"] == 0


def test_an_old_verdict_does_not_stay_beside_new_draws(tree, tmp_path, monkeypatch):
    from sciflow_mri.report import writing

    write_results(tree, tmp_path)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(writing, "write_nifti", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_results(tree, tmp_path)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["mean.nii.gz", "posterior.nc", "std.nii.gz"]


def test_a_prepared_scan_comes_back_as_it_was(scan, tmp_path):
    noisy = make_scan(
        scan["kspace"].values, mask=scan["mask"].values, noise=np.ones((COILS, 9), np.complex64) * (1 + 2j),
        attrs={**scan.attrs, "recentred_from": [3, 4]},
    )  # fmt: skip
    for one in (scan, noisy):
        back = read_scan(write_scan(one, tmp_path / "scan.nc"))
        xr.testing.assert_identical(back, one)
        assert {name: type(value) for name, value in back.attrs.items()} == {n: type(v) for n, v in one.attrs.items()}
    assert [entry.name for entry in tmp_path.iterdir()] == ["scan.nc"]


def test_files_that_are_no_scans(scan, tree, tmp_path):
    path = write_scan(scan, tmp_path / "scan.nc")
    (tmp_path / "cut.nc").write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=r"cut.nc: cannot be read as a prepared scan, it is damaged or truncated"):
        read_scan(tmp_path / "cut.nc")
    sciflow.to_netcdf(tree, tmp_path / "posterior.nc")
    with pytest.raises(UserError, match=r"posterior.nc: no prepared scan: `sciflow mri prepare` writes one"):
        read_scan(tmp_path / "posterior.nc")
    with pytest.raises(UserError, match="no such file"):
        read_scan(tmp_path / "none.nc")
    with pytest.raises(UserError, match="ends in"):
        write_scan(scan, tmp_path / "scan.h5")


def test_refusals(scan, prior, sampler):
    with pytest.raises(UserError, match="there is no slice 7, there are 2"):
        reconstruct(scan, prior, slice=7, draws=1)
    with pytest.raises(UserError, match="has 16 x 16 points, the prior 8 x 8: crop"):
        reconstruct(scan, image_flow(8, widths=(8,), blocks=1), draws=1)
    with pytest.raises(UserError, match="chunk=3 beside a sampler"):
        reconstruct(scan, prior, draws=1, sampler=sampler, chunk=3)
    with pytest.raises(UserError, match="device 'nonsense' cannot be used here"):
        checked_device("nonsense")
    with pytest.raises(UserError, match="device 'meta' cannot be used here"):
        checked_device("meta")
    with pytest.raises(UserError, match="does not state the scale of its data"):
        default_sampler(torch.nn.Linear(1, 1))


def test_a_reference_needs_the_full_scan(scan):
    with pytest.raises(UserError, match=r"is no truth: 8 of 16 lines were not measured; give the full scan"):
        reference(scan)


def test_evaluation_of_known_draws(scan, prior, sampler):
    """Draws t + e with the truth a t, e white and real: coverage of central intervals is their level within binomial error."""
    acquisition = acquire(scan, 0)
    found = draw_images(acquisition, prior, 200, sampler=default_sampler(prior, coarse=1, levels=((0.4, 1),), states=0))
    rng = np.random.default_rng(5)
    truth = 5 + rng.random((SIZE, SIZE))
    made = truth + rng.normal(0, 0.1, (SIZE, SIZE)) + rng.normal(0, 0.1, (200, SIZE, SIZE))
    tree = result_tree(replace(found, x=torch.from_numpy(made.astype(np.complex64))[None]), acquisition, scan, 0)
    support = np.ones((SIZE, SIZE), bool)
    figures, shown = evaluate(tree["images"], Reference(3 * truth, support))
    np.testing.assert_allclose(shown, truth, rtol=2e-3)  # the scale 3 is found
    for level in (50, 80, 95):  # false-alarm rate of 4 sigma: 6e-5 each
        assert abs(figures[f"coverage {level} %"] - level / 100) < 4 * 0.5 / SIZE + 0.03
    assert figures["PSNR"] == pytest.approx(20 * np.log10(6 / 0.1), abs=0.6)
    assert abs(figures["rank correlation of std and error"]) < 0.3
    assert zero_filled(acquisition).shape == (SIZE, SIZE)
    assert image_group(made, zero_filled(acquisition), scan, 0).attrs["slice"] == 0


def test_nothing_is_printed(scan, prior, sampler, capsys, caplog):
    with caplog.at_level(logging.INFO):
        reconstruct(scan, prior, draws=1, sampler=sampler)
    assert capsys.readouterr() == ("", "")


def test_progress_counts_draws(scan, prior, sampler, monkeypatch):
    from sciflow_mri.posterior import drawing

    shown = []

    class Bar:
        visible = True

        def __init__(self, total):
            shown.append(total)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self, done, text):
            shown.append((done, text))

    monkeypatch.setattr(drawing, "ProgressBar", Bar)
    reconstruct(scan, prior, draws=6, sampler=sampler)
    total, last = shown[0], shown[-1]
    assert last == (total, "6 of 6 draws")  # the number of evaluations is known exactly
    assert not prior.network._forward_hooks
