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
    assert len(calls) == 50 and torch.equal(again.y, whole.y)
    with pytest.raises(UserError, match="seed=0, now it is 1"):
        simulate(counted, theta=whole.theta, seed=1, folder=tmp_path / "a", chunk=10, progress=False)
    with pytest.raises(UserError, match="other parameters"):
        simulate(counted, theta=whole.theta + 1, folder=tmp_path / "a", chunk=10, progress=False)


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
    finally:
        del os.environ["SCIFLOW_TEST_MARKER"]


def test_bad_arguments() -> None:
    with pytest.raises(UserError, match="prior with a number"):
        simulate(noisy, progress=False)
    with pytest.raises(UserError, match="finite parameters"):
        simulate(noisy, theta=torch.tensor([[torch.nan, 0.0]]), progress=False)
