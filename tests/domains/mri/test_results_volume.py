"""All slices: the same draws however they are run, failures recorded, summaries in the place of the scan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_mri.data import make_scan
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.volume import SliceDraws, reconstruct_volume, volume_images

from sciflow.errors import UserError

SIZE, SLICES, DRAWS = 16, 3, 4


def settings():
    torch.manual_seed(0)
    prior = image_flow(SIZE, widths=(8,), blocks=1).eval()
    sampler = default_sampler(prior, coarse=2, levels=((0.4, 1), (0.1, 1)), states=4, bf16=False, chunk=DRAWS)
    return {"prior": prior, "sampler": sampler, "draws": DRAWS, "seed": 5, "progress": False}


@pytest.fixture(scope="module")
def scan():
    y, x = np.mgrid[:SIZE, :SIZE] - SIZE / 2
    image = torch.zeros(2, SIZE, SIZE)
    image[0] = torch.from_numpy(np.exp(-(x**2 + 2 * y**2) / 30)).float()
    mask = line_mask(SIZE, 2, 6, seed=1)
    parts = [simulated_scan(image, mask, coils=4, seed=seed)[0]["kspace"].values for seed in range(SLICES)]
    return make_scan(
        np.concatenate(parts), mask=mask.numpy(), voxel_size_mm=(4.0, 3.0, 2.0), slices=4.0 * np.arange(SLICES),
        attrs={"source": "blob.h5", "source_sha256": "cd" * 32},
    )  # fmt: skip


@pytest.fixture(scope="module")
def many(scan, tmp_path_factory):
    return reconstruct_volume(scan, path=tmp_path_factory.mktemp("volume") / "posterior.zarr", **settings())


def test_every_slice_has_its_draws_and_certificate(many, scan):
    assert many.x.shape == (SLICES, 1, DRAWS, SIZE, SIZE) and many.x.dtype == np.complex64
    assert not many.failures and len({many[k].certificate.subject for k in range(SLICES)}) == SLICES
    assert many[1].certificate.subject == "blob.h5 slice 1" and many[1].statistics["acceleration"] == 2
    assert not (many.x.values[0] == many.x.values[1]).any()


def test_a_finished_volume_is_taken_as_it_is(many, scan):
    before = many.path.stat().st_mtime_ns
    again = reconstruct_volume(scan, path=many.path, **settings())
    assert again.path.stat().st_mtime_ns == before
    with pytest.raises(UserError, match="holds other draws"):
        reconstruct_volume(scan, path=many.path, **{**settings(), "seed": 6})
    other = make_scan(2 * scan["kspace"].values, mask=scan["mask"].values, attrs={"source": "blob.h5"})
    with pytest.raises(UserError, match="holds other draws"):
        reconstruct_volume(other, path=many.path, **settings())


def test_an_interrupted_volume_goes_on_with_the_slice_it_was_at(many, scan, tmp_path, monkeypatch):
    calls = []
    whole = SliceDraws.__call__

    def twice(self, item, draws, *, seed=0):
        calls.append(item["attrs"]["part"])
        if len(calls) == 3:
            raise KeyboardInterrupt
        return whole(self, item, draws, seed=seed)

    monkeypatch.setattr(SliceDraws, "__call__", twice)
    path = tmp_path / "posterior.zarr"
    with pytest.raises(KeyboardInterrupt):
        reconstruct_volume(scan, path=path, **settings())
    assert not path.exists() and path.with_name("posterior.zarr.partial").is_dir()
    found = reconstruct_volume(scan, path=path, **settings())
    assert calls == ["slice 0", "slice 1", "slice 2", "slice 2"]
    np.testing.assert_array_equal(found.x.values, many.x.values)
    assert [entry.name for entry in tmp_path.iterdir()] == ["posterior.zarr"]


def test_a_cluster_draws_the_same(many, scan, tmp_path):
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None) as machine,
        distributed.Client(machine, set_as_default=False) as client,
    ):
        found = reconstruct_volume(scan, path=tmp_path / "posterior.zarr", dask=client, **settings())
    np.testing.assert_array_equal(found.x.values, many.x.values)


def test_a_bad_slice_is_named_and_the_others_are_drawn(scan, tmp_path):
    kspace = scan["kspace"].values.copy()
    kspace[1, 2] = 0  # a coil that is dead in this slice
    bad = make_scan(kspace, mask=scan["mask"].values, attrs={"source": "blob.h5"})
    found = reconstruct_volume(bad, path=tmp_path / "posterior.zarr", **settings())
    assert list(found.failures) == [1]
    assert "blob.h5 slice 1: k-space is zero everywhere in coils 2" in found.failures[1]
    images = volume_images(found, bad)
    assert np.isnan(images["std"].values[1]).all() and np.isfinite(images["std"].values[[0, 2]]).all()


def test_summaries_of_all_slices(many, scan):
    images = volume_images(many, scan)
    assert images["mean"].dims == ("slice", "image_y", "image_x")
    np.testing.assert_allclose(images["mean"].values, many.x.values[:, 0].mean(1), rtol=1e-5)
    assert images.attrs["voxel_size_mm"] == [4.0, 3.0, 2.0] and images["slice"].values.tolist() == [0, 4, 8]


def test_a_prior_of_another_size_is_refused_before_anything_is_written(scan, tmp_path):
    small = image_flow(8, widths=(8,), blocks=1)
    with pytest.raises(UserError, match="16 x 16 points, the prior 8 x 8"):
        reconstruct_volume(scan, **{**settings(), "prior": small}, path=tmp_path / "posterior.zarr")
    assert not list(tmp_path.iterdir())
