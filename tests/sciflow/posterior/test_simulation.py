"""Runners: the same numbers everywhere, nothing lost, nothing silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior import Prior
from sciflow.posterior.simulation import Dask, Processes, Serial, simulate

PRIOR = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)


def noisy(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return theta + random.normal(size=2)


def brittle(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Raises below -0.8, is NaN above 0.8, and has another shape near 0."""
    if theta[0] < -0.8:
        raise RuntimeError("no steady state")
    if theta[0] > 0.8:
        return np.array([np.nan, 0.0])
    return np.zeros(3) if abs(theta[0]) < 0.05 else theta + random.normal(size=2)


def deadly(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Kills its process once: the first time that the marker file is not there."""
    marker = Path(os.environ["SCIFLOW_TEST_MARKER"])
    if not marker.exists():
        marker.write_text("dead")
        os.kill(os.getpid(), signal.SIGKILL)
    return theta


def always_deadly(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    os._exit(1)


def test_chunks_and_runners_do_not_change_a_bit() -> None:
    reference = simulate(noisy, PRIOR, 23, seed=3, progress=False)
    for chunk, runner in ((1, Serial()), (7, Serial()), (5, Processes(2))):
        found = simulate(noisy, PRIOR, 23, seed=3, chunk=chunk, runner=runner, progress=False)
        assert torch.equal(found.theta, reference.theta) and torch.equal(found.y, reference.y)
    assert not torch.equal(simulate(noisy, PRIOR, 23, seed=4, progress=False).y, reference.y)
    noise = reference.y - reference.theta
    assert len(noise.unique()) == noise.numel()  # rows do not share their noise


def test_failures_are_recorded_with_row_and_message() -> None:
    found = simulate(brittle, PRIOR, 400, chunk=9, progress=False)
    first = found.theta[:, 0]
    expected = {
        **{int(row): "no steady state" for row in (first < -0.8).nonzero()},
        **{int(row): "not finite" for row in (first > 0.8).nonzero()},
        **{int(row): "shape (3,)" for row in (first.abs() < 0.05).nonzero()},
    }
    assert {row for row, _ in found.errors} == set(expected) and len(expected) > 60
    assert all(expected[row] in message for row, message in found.errors)
    assert bool(found.y[~found.good].isnan().all()) and bool(found.y[found.good].isfinite().all())
    assert "failed" in repr(found)


def test_shapes_that_differ_between_chunks_are_failures() -> None:
    found = simulate(lambda theta, random: np.zeros(1 if theta[0] > 3 else 2), theta=torch.arange(10.0).unsqueeze(1) / 1.9,
                     chunk=1, progress=False)  # fmt: skip
    assert found.y.shape == (10, 2) and [row for row, _ in found.errors] == [6, 7, 8, 9]


def test_nothing_works() -> None:
    with pytest.raises(UserError, match="all 5 simulations failed; the first: ZeroDivisionError"):
        simulate(lambda theta, random: 1 / 0, PRIOR, 5, progress=False)


@pytest.mark.parametrize("batched", [False, True])
def test_complex_data_are_refused_and_not_halved(batched: bool) -> None:
    theta = torch.ones(3, 2)
    with pytest.raises(UserError, match=r"all 3 simulations failed.*complex.*np.stack\(\[y.real, y.imag\], -1\)"):
        simulate(lambda theta, random: theta * 1j, theta=theta, batched=batched, progress=False)
    found = simulate(lambda theta, random: [theta[0] + 1j] if theta[0] > 3 else [theta[0]],
                     theta=torch.arange(6.0).unsqueeze(1), chunk=2, progress=False)  # fmt: skip
    assert [row for row, message in found.errors if "complex" in message] == [4, 5]


def leaving(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """Programs made into functions say sys.exit when they are unhappy."""
    return theta if theta[0] < 3 else sys.exit("no convergence")


@pytest.mark.parametrize("runner", [Serial(), Processes(1)])
def test_a_simulator_that_leaves_takes_nobody_along(runner: Serial | Processes) -> None:
    found = simulate(leaving, theta=torch.arange(6.0).unsqueeze(1), chunk=4, runner=runner, progress=False)
    assert found.errors == [(row, "SystemExit: no convergence") for row in (3, 4, 5)]


def test_a_batch_that_leaves_is_a_failed_batch() -> None:
    with pytest.raises(UserError, match="all 6 simulations failed; the first: SystemExit: 3"):
        simulate(lambda theta, random: sys.exit(3), theta=torch.ones(6, 1), chunk=3, batched=True, progress=False)


def test_batched_simulators_get_one_generator_per_chunk() -> None:
    def many(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
        return theta + random.normal(size=theta.shape)

    a, b = (simulate(many, PRIOR, 20, chunk=10, batched=True, progress=False, runner=Serial()) for _ in range(2))
    assert torch.equal(a.y, b.y) and len((a.y - a.theta).unique()) == 40
    with pytest.raises(UserError, match="returned shape"):
        simulate(lambda theta, random: theta[:1], PRIOR, 20, chunk=10, batched=True, progress=False)


def test_a_folder_resumes_and_damage_is_mended(tmp_path: Path) -> None:
    calls = []

    def counted(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
        calls.append(1)
        return noisy(theta, random)

    whole = simulate(counted, PRIOR, 30, folder=tmp_path / "a", chunk=10, progress=False)
    assert len(calls) == 30
    files = sorted((tmp_path / "a").glob("chunk-*.npz"))
    files[1].write_bytes(files[1].read_bytes()[:100])
    files[2].unlink()
    again = simulate(counted, PRIOR, 30, folder=tmp_path / "a", chunk=10, progress=False)
    assert len(calls) == 30 + 1 + 20 and torch.equal(again.y, whole.y)  # one row is run again to know the simulator by
    with pytest.raises(UserError, match="seed=0, now it is 1"):
        simulate(counted, theta=whole.theta, seed=1, folder=tmp_path / "a", chunk=10, progress=False)
    with pytest.raises(UserError, match="other parameters"):
        simulate(counted, theta=whole.theta + 1, folder=tmp_path / "a", chunk=10, progress=False)


def shifted(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
    return noisy(theta, random) + 1000


@pytest.mark.parametrize("batched", [False, True])
@pytest.mark.parametrize("missing", [0, 1])
def test_another_simulator_is_noticed(tmp_path: Path, batched: bool, missing: int) -> None:
    """It would be mixed with rows of the first one, or not be run at all."""
    choices = {"folder": tmp_path, "chunk": 10, "batched": batched, "progress": False}
    whole = simulate(brittle if not batched else noisy, PRIOR, 30, **choices)
    if missing:
        (tmp_path / "chunk-000001.npz").unlink()
    first = int(whole.good.nonzero()[0])
    with pytest.raises(UserError, match=rf"row {first} .*another simulator.*another folder"):
        simulate(shifted, PRIOR, 30, **choices)
    with pytest.raises(UserError, match=rf"row {first} .*ZeroDivisionError"):
        simulate(lambda theta, random: 1 / 0, PRIOR, 30, **choices)
    assert len(list(tmp_path.glob("chunk-*.npz"))) == 3 - missing
    # the last bits may differ between machines
    close = simulate(lambda theta, random: brittle(theta, random) * (1 + 1e-12) if not batched else noisy(theta, random),
                     PRIOR, 30, **choices)  # fmt: skip
    torch.testing.assert_close(close.y, whole.y, equal_nan=True)


def test_an_interruption_keeps_what_was_finished(tmp_path: Path) -> None:
    def stops(theta: np.ndarray, random: np.random.Generator) -> np.ndarray:
        if len(list(tmp_path.glob("chunk-*.npz"))) == 2:
            raise KeyboardInterrupt
        return noisy(theta, random)

    with pytest.raises(KeyboardInterrupt):
        simulate(stops, PRIOR, 30, folder=tmp_path, chunk=10, progress=False)
    assert len(list(tmp_path.glob("chunk-*.npz"))) == 2 and not list(tmp_path.glob("*.tmp*"))
    assert torch.equal(simulate(noisy, PRIOR, 30, folder=tmp_path, chunk=10, progress=False).y,
                       simulate(noisy, PRIOR, 30, progress=False).y)  # fmt: skip


SLOW = """
import sys, time, numpy as np, torch
from sciflow.posterior import Prior
from sciflow.posterior.simulation import simulate
def slow(theta, random):
    time.sleep(0.01)
    return theta + random.normal(size=2)
prior = torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)
print(float(simulate(slow, prior, 400, folder=sys.argv[1], chunk=10, progress=False).y.sum()))
"""


def test_kill_9_loses_one_chunk_at_most(tmp_path: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "a")], stdout=subprocess.DEVNULL)
    while len(list((tmp_path / "a").glob("chunk-*.npz"))) < 3:
        time.sleep(0.02)
        assert process.poll() is None
    process.kill()
    process.wait()
    kept = len(list((tmp_path / "a").glob("chunk-*.npz")))
    assert 3 <= kept < 40
    assert torch.equal(simulate(noisy, PRIOR, 400, folder=tmp_path / "a", chunk=10, progress=False).y,
                       simulate(noisy, PRIOR, 400, progress=False).y)  # fmt: skip


@pytest.mark.slow
def test_a_dead_worker_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCIFLOW_TEST_MARKER", str(tmp_path / "marker"))
    found = simulate(deadly, PRIOR, 6, chunk=2, runner=Processes(1), progress=False)
    assert torch.equal(found.y, found.theta) and (tmp_path / "marker").exists()


@pytest.mark.slow
def test_workers_that_keep_dying_are_a_clear_error() -> None:
    with pytest.raises(UserError, match="worker processes died 1 times"):
        simulate(always_deadly, PRIOR, 2, chunk=2, runner=Processes(1, attempts=1), progress=False)


def test_a_lambda_cannot_go_to_processes() -> None:
    with pytest.raises(UserError, match="use Serial"):
        simulate(lambda theta, random: theta, PRIOR, 2, runner=Processes(1), progress=False)


@pytest.mark.slow
def test_dask_is_the_serial_result_and_survives_a_killed_worker(tmp_path: Path) -> None:
    """A real local cluster of two workers, one of which dies in the middle of a chunk."""
    distributed = pytest.importorskip("distributed")
    os.environ["SCIFLOW_TEST_MARKER"] = str(tmp_path / "marker")
    try:
        with (
            distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
            distributed.Client(cluster, set_as_default=False),
        ):
            found = simulate(noisy, PRIOR, 40, chunk=5, runner=Dask(), folder=tmp_path / "a", progress=False)
            assert torch.equal(found.y, simulate(noisy, PRIOR, 40, progress=False).y)
            assert torch.equal(simulate(deadly, PRIOR, 12, chunk=3, runner=Dask(), progress=False).y,
                               simulate(deadly, PRIOR, 12, progress=False).theta)  # fmt: skip
            assert (tmp_path / "marker").exists()
        with pytest.raises(UserError, match="no address of a Dask scheduler"):  # what sample_many says of it
            simulate(noisy, PRIOR, 4, runner=Dask("nowhere://"), progress=False)
    finally:
        del os.environ["SCIFLOW_TEST_MARKER"]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="prior with a number"):
        simulate(noisy, progress=False)
    with pytest.raises(UserError, match="finite parameters"):
        simulate(noisy, theta=torch.tensor([[torch.nan, 0.0]]), progress=False)


def test_a_prior_of_numbers_is_named_and_the_way_out_works() -> None:
    number = torch.distributions.Normal(0.0, 1.0)
    with pytest.raises(UserError, match=r"event shape \(\), a simulator takes vectors theta \(D,\): Prior.product"):
        simulate(lambda theta, random: theta, number, 5, progress=False)
    found = simulate(lambda theta, random: theta, Prior.product({"name": number}), 5, progress=False)
    assert found.theta.shape == (5, 1)
