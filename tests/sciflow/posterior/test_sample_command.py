"""`sciflow sample`: draws for every row of a file, and what it says of bad input."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray

from sciflow.cli import run
from sciflow.errors import UserError
from sciflow.posterior.amortised import AmortisedPosterior, SplineRecipe, fit_posterior
from sciflow.posterior.many import read_many, sample_many
from sciflow.posterior.many.observations import read_observations


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(400, 2, generator=generator)
    y = theta + 0.3 * torch.randn(400, 2, generator=generator)
    prior = torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2))
    recipe = SplineRecipe(2, 4, (8,), "coupling", training={"epochs": 2, "batch_size": 100})
    return fit_posterior(prior, theta, y, flow=recipe, progress=False).save(tmp_path_factory.mktemp("model") / "posterior")


def test_draws_are_those_of_python(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    y = torch.tensor([[0.1, 0.2], [torch.nan, 0.0], [-0.5, 1.0]])
    np.save(tmp_path / "y.npy", y.numpy())
    words = ["sample", str(model), str(tmp_path / "y.npy"), "-n", "20", "--seed", "3", "-o", str(tmp_path / "a.zarr")]
    assert run(words) == 0
    shown = capsys.readouterr()
    assert "incomplete: 2 of 3 observations" in shown.out and "observation 1 has no draws" in shown.err
    again = sample_many(AmortisedPosterior.load(model), y, 20, tmp_path / "b.zarr", seed=3)
    found = read_many(tmp_path / "a.zarr")
    assert np.array_equal(found.x.values, again.x.values, equal_nan=True) and list(found.failures) == [1]
    assert run(["certify", str(tmp_path / "a.zarr"), "--require", "pass"]) == 3
    assert run(words) == 0  # a finished store is taken as it is
    assert run([*words, "--draws", "21"]) == 2 and "draws" in capsys.readouterr().err
    assert run([*words, "--draws", "21", "--again"]) == 0 and read_many(tmp_path / "a.zarr").x.sizes["draw"] == 21


def test_files_of_every_kind(tmp_path: Path) -> None:
    y, mask = np.arange(6.0).reshape(3, 2), np.array([[True, False]] * 3)
    np.save(tmp_path / "y.npy", y)
    np.savez(tmp_path / "y.npz", observations=y, mask=mask)
    arrays = xarray.Dataset({"flux": (("row", "channel"), y), "other": (("row",), y[:, 0])})
    arrays.to_netcdf(tmp_path / "y.nc", engine="h5netcdf")
    arrays.to_zarr(tmp_path / "y.zarr")
    for name in ("y.npy", "y.nc", "y.zarr"):
        found = read_observations(tmp_path / name, None if name == "y.npy" else "flux")
        assert isinstance(found, torch.Tensor) and found.dtype == torch.float64 and np.array_equal(found.numpy(), y)
    masked = read_observations(tmp_path / "y.npz")
    assert isinstance(masked, dict) and np.array_equal(masked["mask"].numpy(), mask)
    with pytest.raises(UserError, match="no array 'observations'; there are flux, other"):
        read_observations(tmp_path / "y.nc")


def test_bad_input(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    np.save(tmp_path / "complex.npy", np.ones((2, 2), dtype=complex))
    np.save(tmp_path / "empty.npy", np.ones((0, 2)))
    np.save(tmp_path / "wide.npy", np.ones((2, 3)))
    np.savez(tmp_path / "mask.npz", observations=np.ones((2, 2)), mask=np.ones((3, 2), dtype=bool))
    np.save(tmp_path / "whole.npy", np.ones((50, 2)))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "whole.npy").read_bytes()[:300])
    (tmp_path / "text.npy").write_text("1 2 3")
    (tmp_path / "folder").mkdir()
    for name, said in {
        "none.npy": "there is no such file", "complex.npy": "complex128", "empty.npy": "shape (0, 2)",
        "wide.npy": "expected (2,)", "mask.npz": "the mask is bool of shape (3, 2)", "cut.npy": "not a NumPy array",
        "text.npy": "not a NumPy array", "folder": "not a NumPy array",
    }.items():  # fmt: skip
        output = tmp_path / "out.zarr"
        assert run(["sample", str(model), str(tmp_path / name), "-o", str(output)]) == 2, name
        message = capsys.readouterr().err
        assert said in message and "internal" not in message
        assert not output.exists()
    assert run(["sample", str(tmp_path), str(tmp_path / "whole.npy"), "-o", str(tmp_path / "out.zarr")]) == 2
    assert "config.json" in capsys.readouterr().err
    far = ["sample", str(model), str(tmp_path / "far.npy"), "-n", "5", "-o", str(tmp_path / "far.zarr")]
    np.save(tmp_path / "far.npy", np.full((1, 2), 1e3))
    assert run(far) == 2 and "force" in capsys.readouterr().err
    assert run([*far, "--force"]) == 0
