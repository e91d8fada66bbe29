"""A certificate belongs to its draws: whatever is edited afterwards, and in whatever file, is found."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import zarr

from sciflow.certificate import Certificate, Test
from sciflow.cli import run
from sciflow.errors import UserError
from sciflow.posterior import Estimate, Posterior
from sciflow.posterior.many import sample_many
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.recalibration import Recalibration
from sciflow.posterior.report import html_page
from sciflow.posterior.samplers import Importance
from sciflow.posterior.writing import from_tree, to_tree, write
from sciflow.store import attach_certificate, draw, read_draws, to_netcdf
from sciflow.store.binding import HASHES, array_hashes, bound

CERTIFICATE = Certificate([Test("k-hat", 0.3, 0.7, "<=")], subject="Sampler")


def result(dtype: torch.dtype = torch.float64, kind: type = Posterior, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(2, 30, 3, generator=generator, dtype=dtype)
    return kind(x, log_weight=torch.randn(2, 30, generator=generator), method="Sampler()", certificate=CERTIFICATE)


@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128])
def test_what_is_written_is_bound_whatever_the_file(tmp_path: Path, name: str, dtype: torch.dtype) -> None:
    given = result(dtype)
    given.x[0, 0, 0] = -torch.nan  # files do not keep the sign of NaN
    tree = read_draws(write(given, tmp_path / name))
    certificate = from_tree(tree).certificate
    assert set(certificate.context[HASHES]) == {"posterior/x", "sample_stats/log_weight"}
    assert certificate.context[HASHES] == array_hashes(tree) and bound(certificate, tree) == certificate
    other = read_draws(write(result(dtype), tmp_path / f"other-{name}"))
    assert array_hashes(other)["posterior/x"] != certificate.context[HASHES]["posterior/x"]


def test_the_hash_is_the_published_recipe() -> None:
    """name, type, shape and a line end; then little-endian bytes."""
    import hashlib

    x = torch.arange(6.0).reshape(1, 3, 2)
    wanted = hashlib.sha256(b"posterior/x <f4 (1, 3, 2)\n" + x.numpy().astype("<f4").tobytes()).hexdigest()
    assert array_hashes(to_tree(Posterior(x)))["posterior/x"] == wanted


def test_blocks_give_the_same_hash(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    tree = read_draws(write(result(), tmp_path / "draws.zarr"))
    whole = array_hashes(tree)
    monkeypatch.setattr("sciflow.store.binding._BLOCK", 100)
    assert array_hashes(tree) == whole == array_hashes(to_tree(result()))


@pytest.mark.parametrize("array", ["posterior/x", "sample_stats/log_weight"])
@pytest.mark.parametrize("name", ["draws.nc", "draws.zarr"])
def test_an_edited_file_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture, name: str, array: str) -> None:
    path = write(result(), tmp_path / name)
    assert run(["certify", str(path), "--require", "pass"]) == 0 and "sha256 of posterior/x" in capsys.readouterr().out
    if path.suffix == ".nc":
        with h5py.File(path, "r+") as file:
            file[array][0, 0] = np.nextafter(file[array][0, 0], np.float32(9))  # one bit
    else:
        zarr.open_group(path, mode="r+", use_consolidated=False)[array][0, 0] = 0.5
    for extra in ([], ["--require", "warn"], ["--html", str(tmp_path / "page.html")]):
        assert run(["certify", str(path), *extra]) == 2
        shown = capsys.readouterr()
        assert f"the draws are not those of their certificate: {array} differs" in shown.err and not shown.out
    assert not (tmp_path / "page.html").exists()
    with pytest.raises(UserError, match="not those of their certificate"):
        html_page(read_draws(path))


def test_certificates_of_others_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path, other = write(result(), tmp_path / "a.nc"), write(result(seed=1), tmp_path / "b.nc")
    with h5py.File(path, "r+") as file, h5py.File(other) as source:
        file.attrs["certificate"] = source.attrs["certificate"]
    assert run(["certify", str(path)]) == 2
    assert "posterior/x, sample_stats/log_weight differ from" in capsys.readouterr().err
    estimate = write(replace(result(kind=Estimate), log_weight=None), tmp_path / "c.nc")
    with h5py.File(estimate, "r+") as file:  # an estimate that calls itself a posterior
        file.move("estimate", "posterior")
    assert run(["certify", str(estimate)]) == 2 and "estimate/x, posterior/x differ" in capsys.readouterr().err
    with h5py.File(other, "r+") as file:  # weights that are dropped
        del file["sample_stats/log_weight"]
    assert run(["certify", str(other)]) == 2 and "log_weight differs" in capsys.readouterr().err


def test_a_file_without_hash_is_incomplete(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    path = write(result(), tmp_path / "draws.nc")
    with h5py.File(path, "r+") as file:
        file.attrs["certificate"] = CERTIFICATE.to_json()
    assert run(["certify", str(path)]) == 0 and run(["certify", str(path), "--require", "warn"]) == 3
    shown = capsys.readouterr()
    assert "draws are those of the certificate was not evaluated" in shown.out and "sha256 of posterior" not in shown.out
    assert "<b>incomplete</b>" in html_page(read_draws(path), figures=False)


def test_changed_results_need_a_certificate_of_their_own(tmp_path: Path) -> None:
    read = from_tree(read_draws(write(result(), tmp_path / "draws.nc")))
    write(read, tmp_path / "again.nc")
    for changed in (replace(read, x=2 * read.x), replace(read, log_weight=None), replace(read, x=read.x[:, :10])):
        with pytest.raises(UserError, match="the certificate belongs to other draws"):
            write(changed, tmp_path / "changed.nc")
    tree = read_draws(tmp_path / "draws.nc")
    tree["posterior"]["x"][:] = 0.0
    for name in ("edited.nc", "edited.zarr"):
        with pytest.raises(UserError, match="not those of their certificate: posterior/x differs"):
            write(tree, tmp_path / name)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["again.nc", "draws.nc"]


def test_resampled_and_recalibrated_results_have_their_own_hash(tmp_path: Path) -> None:
    read = from_tree(read_draws(write(result(), tmp_path / "draws.nc")))
    even = from_tree(read_draws(write(read, tmp_path / "even.nc", equal_weights=True)))
    assert set(even.certificate.context[HASHES]) == {"posterior/x"}
    assert even.certificate.context["resampled"] == {"seed": 0, "of": read.certificate.context[HASHES]}
    theta, draws = torch.randn(50, 3), torch.randn(50, 30, 3)
    recalibration = Recalibration(theta, draws, levels=(0.5,))
    again = recalibration.record(even)
    path = write(again, tmp_path / "mended.nc", recalibrated=recalibration.intervals(again))
    assert set(from_tree(read_draws(path)).certificate.context[HASHES]) == {
        "posterior/x", "recalibrated/low", "recalibrated/high", "recalibrated/inflation",
    }  # fmt: skip
    with h5py.File(path, "r+") as file:
        file["recalibrated/high"][...] = 9.0
    assert run(["certify", str(path)]) == 2
    with pytest.raises(UserError, match="all weights are 0"):
        to_tree(replace(result(), log_weight=torch.full((2, 30), -torch.inf)), equal_weights=True)


def test_draws_of_flows_and_of_many_observations_are_bound(tmp_path: Path) -> None:
    normal = torch.distributions.Normal(torch.zeros(3), 1.0)
    assert bound_by(draw(normal, 10, certificate=CERTIFICATE))
    assert bound_by(draw(normal, 10, certificate=CERTIFICATE, path=tmp_path / "draws.zarr", chunk=4))
    draw(normal, 10, path=tmp_path / "bare.zarr")
    attach_certificate(tmp_path / "bare.zarr", CERTIFICATE)
    assert bound_by(read_draws(tmp_path / "bare.zarr"))
    to_netcdf(read_draws(tmp_path / "bare.zarr"), tmp_path / "bare.nc")
    with pytest.raises(UserError, match="not those of their certificate"):
        attach_certificate(tmp_path / "bare.zarr", from_tree_of(draw(normal, 10, seed=5, certificate=CERTIFICATE)))
    exact = LinearGaussian(GaussianMixtureFlow([[0.0]], 1.0), [[1.0]], 1.0, [2.0])
    y = torch.tensor([[2.0], [torch.nan], [0.0]], dtype=torch.float64)
    many = sample_many(Importance(), y, 200, tmp_path / "many.zarr", problem=exact.problem, progress=False)
    assert bound_by(read_draws(many.path))
    assert run(["certify", str(many.path)]) == 0  # NaN of an observation that failed is known, no fault of the file
    zarr.open_group(many.path, mode="r+", use_consolidated=False)["posterior/x"][2] = np.zeros((1, 200, 1))
    assert run(["certify", str(many.path)]) == 2


def from_tree_of(tree) -> Certificate:
    return Certificate.from_json(tree.attrs["certificate"])


def bound_by(tree) -> bool:
    return from_tree_of(tree).context[HASHES] == array_hashes(tree)
