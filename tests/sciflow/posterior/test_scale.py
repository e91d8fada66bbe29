"""Many observations: the same numbers wherever they are drawn, nothing lost, nothing silent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.posterior import Energy, Posterior, Problem
from sciflow.posterior.amortised import SplineRecipe, fit_posterior
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.many import Many, cluster, read_many, sample_many
from sciflow.posterior.many.drawing import Work, seed_of
from sciflow.posterior.many.summary import summary
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.samplers import Importance, TemperedSMC, Transition
from sciflow.store import read_draws, to_netcdf

EXACT = LinearGaussian(GaussianMixtureFlow([[-1.0, 0.0], [1.0, 0.5]], 0.3), [[1.0, 0.3]], 0.5, [0.4])
OBSERVATIONS = torch.linspace(-2, 2, 10, dtype=torch.float64).unsqueeze(1)
METHOD = TemperedSMC(runs=2, pilot=30, betas=[0.3, 1.0], final=1, further=1, transition=Transition(moves=1, leapfrog=2))


def drawn(path: Path, **choices: Any) -> Many:
    choices = {"chunk": 2, "seed": 5, "progress": False, **choices}
    return sample_many(METHOD, OBSERVATIONS, 40, path, problem=EXACT.problem, **choices)


def assert_same(a: Many, b: Many) -> None:
    """Everything in the store but the processor seconds, bit for bit."""
    assert a.certificate == b.certificate and a.tree.attrs["request"] == b.tree.attrs["request"]
    assert set(a.tree.groups) == set(b.tree.groups)
    for node in a.tree.subtree:
        assert set(node.variables) == set(b.tree[node.path].variables)
        for name, values in node.variables.items():
            if name != "processor_seconds":
                np.testing.assert_array_equal(values.values, b.tree[node.path].variables[name].values, err_msg=str(name))


@pytest.fixture(scope="module")
def serial(tmp_path_factory: pytest.TempPathFactory) -> Many:
    return drawn(tmp_path_factory.mktemp("serial") / "draws.zarr")


@pytest.fixture(scope="module")
def machines() -> Iterator[Any]:
    """A real cluster: two processes that may be killed."""
    distributed = pytest.importorskip("distributed")
    with (
        distributed.LocalCluster(n_workers=2, processes=True, threads_per_worker=1, dashboard_address=":0") as made,
        distributed.Client(made, set_as_default=False),
    ):
        yield made


def test_the_store_is_what_single_calls_give(serial: Many) -> None:
    assert len(serial) == 10 and serial.good.all() and not serial.failures
    assert serial.x.dims == ("observation", "chain", "draw", "feature")
    for number in (0, 7):
        alone = METHOD(EXACT.problem.with_observation(OBSERVATIONS[number]), 40, seed=seed_of(5, number), progress=False)
        kept = serial[number]
        assert isinstance(kept, Posterior) and kept.seed == alone.seed
        for name in ("x", "log_prob", "log_weight", "log_likelihood"):
            assert torch.equal(getattr(kept, name), getattr(alone, name)), name
        assert kept.certificate == alone.certificate and kept.evidence == alone.evidence and kept.calls == alone.calls
    assert len({float(entry.x.sum()) for entry in serial}) == 10
    np.testing.assert_array_equal(serial.tree["observed_data"]["y"].values, OBSERVATIONS.numpy())


def test_the_chunk_changes_nothing_and_the_seed_all(serial: Many, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where Dask is not installed."""
    monkeypatch.setitem(sys.modules, "dask", None)
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert_same(serial, drawn(tmp_path / "a.zarr", chunk=7))
    assert not np.isin(drawn(tmp_path / "b.zarr", seed=6).x.values, serial.x.values).any()


def test_the_global_state_of_torch_matters_not(serial: Many, tmp_path: Path) -> None:
    """Neither the generator nor the number of threads of the calling process enters, and both are given back."""
    torch.manual_seed(123)
    before, threads = torch.random.get_rng_state(), torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert_same(serial, drawn(tmp_path / "a.zarr"))
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_two_workers_give_the_serial_result(serial: Many, machines: Any, tmp_path: Path) -> None:
    assert_same(serial, drawn(tmp_path / "a.zarr", dask=machines.scheduler_address))
    with cluster(machines.scheduler_address) as client:
        assert_same(serial, drawn(tmp_path / "b.zarr", dask=client, chunk=3))
        assert client.status == "running"


def test_an_interrupted_run_goes_on_where_it_was(
    serial: Many, machines: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C at observation 5, in the middle of the third chunk: two chunks are kept; the rest is drawn by the cluster."""
    path = tmp_path / "a.zarr"

    def until_5(work: Work, item: Any, number: int) -> Any:
        if number == 5:
            raise KeyboardInterrupt
        return original(work, item, number)

    original = Work.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Work, "__call__", until_5)
        with pytest.raises(KeyboardInterrupt):
            drawn(path)
    assert not path.exists()
    markers = list((tmp_path / "a.zarr.partial" / "progress").glob("chunk-*.json"))
    assert len(markers) == 2
    with pytest.raises(UserError, match=r"no such file; a[.]zarr[.]partial is unfinished"):
        read_many(path)
    with pytest.raises(UserError, match="cannot resume: seed was 5 and is 6 now"):
        drawn(path, seed=6)
    with pytest.raises(UserError, match="cannot resume: data was"):
        sample_many(METHOD, OBSERVATIONS + 1, 40, path, problem=EXACT.problem, chunk=2, seed=5)
    other = LinearGaussian(EXACT.prior, 1.5 * EXACT.matrix, 0.5, [0.4])  # nothing that a repr tells
    with pytest.raises(UserError, match="another prior or likelihood"):
        sample_many(METHOD, OBSERVATIONS, 40, path, problem=other.problem, chunk=2, seed=5)
    assert_same(serial, drawn(path, dask=machines.scheduler_address, chunk=5))  # the chunk is that of the store
    assert not (tmp_path / "a.zarr.partial").exists()
    begun = time.monotonic()
    assert_same(serial, drawn(path))
    assert time.monotonic() - begun < 2  # nothing is drawn again
    with pytest.raises(UserError, match="another prior or likelihood"):
        sample_many(METHOD, OBSERVATIONS, 40, path, problem=other.problem, chunk=2, seed=5)
    with pytest.raises(UserError, match="holds other draws"):
        drawn(path, seed=6)
    assert drawn(path, seed=6, resume=False).request["seed"] == 6


SCRIPT = """
import sys, torch
sys.modules["dask"] = sys.modules["distributed"] = None  # as if they were not installed
from sciflow.posterior.many import sample_many
from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
from sciflow.posterior.samplers import TemperedSMC, Transition
exact = LinearGaussian(GaussianMixtureFlow([[-1.0, 0.0], [1.0, 0.5]], 0.3), [[1.0, 0.3]], 0.5, [0.4])
y = torch.linspace(-2, 2, 10, dtype=torch.float64).unsqueeze(1)
method = TemperedSMC(runs=2, pilot=30, betas=[0.3, 1.0], final=1, further=1, transition=Transition(moves=1, leapfrog=2))
sample_many(method, y, 40, sys.argv[1], problem=exact.problem, chunk=1, seed=5, progress=False)
"""


def test_kill_9_of_the_whole_run(serial: Many, tmp_path: Path) -> None:
    """Another process, in which Dask cannot be imported, is killed after three chunks; this one goes on."""
    process = subprocess.Popen([sys.executable, "-c", SCRIPT, str(tmp_path / "a.zarr")])
    progress = tmp_path / "a.zarr.partial" / "progress"
    while len(list(progress.glob("chunk-*.json"))) < 3:
        time.sleep(0.005)
        assert process.poll() is None
    with pytest.raises(UserError, match=f"process {process.pid} is writing to it"):
        drawn(tmp_path / "a.zarr")
    process.kill()
    process.wait()
    kept = {entry.name: entry.stat().st_mtime_ns for entry in progress.glob("chunk-*.json")}
    assert 3 <= len(kept) < 10
    seen = []
    original = Work.__call__
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Work, "__call__", lambda work, item, number: (seen.append(number), original(work, item, number))[1])
        found = drawn(tmp_path / "a.zarr", chunk=1)
    assert len(seen) == 10 - len(kept) and not {f"chunk-{number:06d}.json" for number in seen} & set(kept)
    assert_same(serial, found)


def box() -> Any:
    return torch.distributions.Independent(torch.distributions.Uniform(-torch.ones(2), torch.ones(2)), 1)


def test_failures_are_recorded_and_counted(tmp_path: Path) -> None:
    """Observations 0 and 3 raise, 5 gives draws of another shape: the layout is that of the first one with draws."""

    def method(y: torch.Tensor, draws: int, *, seed: int) -> Posterior:
        number = int(y[0])
        if number in (0, 3):
            raise ValueError(f"no steady state\nfor {number}")
        x = torch.full((1, draws, 3 if number == 5 else 2), float(number))
        return Posterior(x, certificate=Certificate([Test("always", 0.0, 1.0, "<=")]))

    for chunk in (1, 4):
        path = tmp_path / f"{chunk}.zarr"
        found = sample_many(method, torch.arange(8.0).unsqueeze(1), 4, path, chunk=chunk, progress=False)
        assert sorted(found.failures) == [0, 3, 5] and found.good.tolist() == [
            False,
            True,
            True,
            False,
            True,
            False,
            True,
            True,
        ]
        assert found.failures[0] == "ValueError: no steady state for 0"
        assert "its x has shape (1, 4, 3)" in found.failures[5] and found.verdicts[5] == ""
        assert np.isnan(found.x.values[[0, 3, 5]]).all() and (found.x.values[6] == 6).all()
        assert found.certificate.verdict == "failed"  # more than a tenth
        assert found.certificate["observations without draws"].value == 3
        assert "observation 0: ValueError: no steady state" in found.certificate["observations without draws"].description
        with pytest.raises(UserError, match="observation 3 has no draws: ValueError"):
            found[3]
        assert [int(entry.x[0, 0, 0]) for entry in found] == [1, 2, 4, 6, 7]
    with pytest.raises(UserError, match="all 2 observations failed; the first: ValueError: no steady state for 0"):
        sample_many(method, torch.tensor([[0.0], [3.0]]), 4, tmp_path / "none.zarr", progress=False)
    assert not list(tmp_path.glob("*.partial"))


def test_draws_that_are_not_finite_fail_the_summary(tmp_path: Path) -> None:
    def method(y: torch.Tensor, draws: int, *, seed: int) -> Posterior:
        x = torch.zeros(1, draws, 2)
        x[0, 1, 0] = torch.nan if int(y[0]) == 1 else 0.0
        return Posterior(x, certificate=Certificate([Test("always", 0.0, 1.0, "<=")]))

    found = sample_many(method, torch.arange(3.0).unsqueeze(1), 4, tmp_path / "a.zarr", progress=False)
    assert found.certificate.verdict == "failed" and not found.failures
    assert found.certificate["observations with draws that are not finite"].value == 1


def test_the_summary_has_the_worst_verdict() -> None:
    good = Certificate([Test("a", 0.1, 1.0, "<=")])
    warned = Certificate([Test("a", 2.0, 1.0, "<=", severity="warn"), Test("b", 3.0, (0.0, 2.0), "inside", severity="warn")])
    unknown = Certificate([Test("a", None)])
    bad = Certificate([Test("a", 5.0, 1.0, "<=")])
    for certificates, verdict in (
        ([good, good], "passed"), ([good, warned], "warned"), ([good, warned, unknown], "incomplete"),
        ([unknown, bad, good], "failed"),
    ):  # fmt: skip
        found = summary(dict(enumerate(certificates)), {})
        assert found.verdict == verdict
        assert Certificate.from_json(found.to_json()) == found
    assert summary(dict.fromkeys(range(20), good), {20: "no"}).verdict == "warned"
    worst = summary({0: good, 1: warned, 2: bad}, {}).context["tests"]
    assert worst["a"] == {"outcomes": {"passed": 1, "warned": 1, "failed": 1}, "worst": 5.0, "observation": 2}
    assert worst["b"]["observation"] == 1


def test_targets_netcdf_and_verdicts(tmp_path: Path) -> None:
    """Targets of one's own; what is written opens as draws, and as netCDF."""
    targets = [Problem(box(), torch.full((2,), 0.1 * k), Gaussian(0.3)) for k in range(3)]
    found = sample_many(Importance(), targets, 400, tmp_path / "a.zarr", progress=False)
    assert found[2].evidence == Importance()(targets[2], 400, seed=seed_of(0, 2)).evidence
    assert set(found.verdicts) <= {"passed", "warned", "failed"} and len(found.verdicts) == 3
    read_draws(to_netcdf(found.tree, tmp_path / "a.nc"))
    again = read_many(tmp_path / "a.nc")
    assert torch.equal(again[1].x, found[1].x) and again.certificate == found.certificate


def test_amortised_posteriors(machines: Any, tmp_path: Path) -> None:
    """Their draws are those of single calls, on workers too; strange observations are failures, other weights are refused."""
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(400, 2, generator=generator) - 1
    y = theta + 0.5 * torch.randn(400, 2, generator=generator)
    recipe = SplineRecipe(2, 4, (8,), "coupling", training={"epochs": 2, "batch_size": 100})
    first, second = (fit_posterior(box(), theta, y, flow=recipe, seed=k, progress=False) for k in (0, 1))
    rows = torch.cat([y[:5], torch.full((1, 2), 300.0)])
    found = sample_many(first, rows, 30, tmp_path / "a.zarr", chunk=2, progress=False)
    assert torch.equal(found[3].x, first(rows[3], 30, seed=seed_of(0, 3)).x) and list(found.failures) == [5]
    assert found.certificate.verdict == "failed" and found.certificate["certificates that are incomplete"].value is None
    assert "times as far from the simulations" in found.failures[5]
    assert_same(found, sample_many(first, rows, 30, tmp_path / "b.zarr", chunk=2, dask=machines.scheduler_address))
    with pytest.raises(UserError, match=r"holds other draws [(]data was"):
        sample_many(second, rows, 30, tmp_path / "a.zarr", progress=False)
    refined = sample_many(
        first, rows[:2], 50, tmp_path / "c.zarr", refine=True, progress=False,
        likelihood=Problem(box(), rows[0], Gaussian(0.5)),
    )  # fmt: skip
    assert refined[1].evidence is not None and "refined" in refined[1].method


def test_amortised_draws_are_not_taken_for_those_of_another_likelihood_or_prior(tmp_path: Path) -> None:
    """Neither is told by a repr: functions have addresses in it, distributions the shapes of their tensors."""
    generator = torch.Generator().manual_seed(0)
    theta = 2 * torch.rand(400, 2, generator=generator) - 1
    y = theta + 0.5 * torch.randn(400, 2, generator=generator)
    recipe = SplineRecipe(2, 4, (8,), "coupling", training={"epochs": 2, "batch_size": 100})
    posterior = fit_posterior(box(), theta, y, flow=recipe, progress=False)

    def normal(scale: float) -> Any:
        return torch.distributions.Independent(torch.distributions.Normal(torch.zeros(2), torch.full((2,), scale)), 1)

    def drawn(prior: Any, sigma: float | None, path: str) -> Many:
        choices = {"refine": True, "likelihood": lambda x: -0.5 * (x / sigma).square().sum(1)} if sigma else {}
        method = posterior.with_prior(prior)
        return sample_many(method, y[:2], 20, tmp_path / path, progress=False, force=True, **choices)

    first = drawn(normal(0.3), 1.0, "a.zarr")
    assert_same(first, drawn(normal(0.3), 1.0, "a.zarr"))
    with pytest.raises(UserError, match="another prior or likelihood"):
        drawn(normal(0.3), 0.1, "a.zarr")
    with pytest.raises(UserError, match="prior was"):
        drawn(normal(0.2), 1.0, "a.zarr")
    drawn(normal(0.3), None, "b.zarr")
    with pytest.raises(UserError, match="prior was"):
        drawn(normal(0.2), None, "b.zarr")


def test_a_worker_that_is_killed_loses_nothing(serial: Many, machines: Any, tmp_path: Path) -> None:
    """kill -9 of one of two workers once two chunks are on disk: the run goes on, its numbers are the serial ones."""
    killed = []

    def kill() -> None:
        while len(list((tmp_path / "a.zarr.partial" / "progress").glob("chunk-*.json"))) < 2:
            time.sleep(0.005)
        victim = next(iter(machines.workers.values())).process.process.pid
        os.kill(victim, signal.SIGKILL)
        killed.append(len(list((tmp_path / "a.zarr.partial" / "progress").glob("chunk-*.json"))))

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    found = drawn(tmp_path / "a.zarr", dask=machines.scheduler_address, chunk=1)
    killer.join(10)
    assert killed and 2 <= killed[0] < 10, "the worker died after the run: make the run longer"
    assert_same(serial, found)


@pytest.mark.slow
def test_an_observation_that_kills_every_worker(machines: Any, tmp_path: Path) -> None:
    """It is named, the others are kept, and a call with a method that does not die goes on."""

    def deadly(y: torch.Tensor, draws: int, *, seed: int) -> Posterior:
        if int(y[0]) == 9:
            while len(list((tmp_path / "a.zarr.partial" / "progress").glob("chunk-*.json"))) < 9:
                time.sleep(0.01)
            if not (tmp_path / "mended").exists():
                os._exit(1)
        return Posterior(torch.full((1, draws, 2), float(y[0])), certificate=Certificate([Test("a", 0.0, 1.0, "<=")]))

    y = torch.arange(10.0).unsqueeze(1)
    with pytest.raises(UserError, match="observations 9 to 9 died one after the other"):
        sample_many(deadly, y, 4, tmp_path / "a.zarr", chunk=1, dask=machines.scheduler_address, progress=False)
    (tmp_path / "mended").touch()
    found = sample_many(deadly, y, 4, tmp_path / "a.zarr", chunk=1, progress=False)
    assert found.certificate.verdict == "passed" and (found.x.values[9] == 9).all()


def test_clusters_that_do_not_answer(machines: Any) -> None:
    distributed = pytest.importorskip("distributed")
    with (
        pytest.raises(UserError, match=r"no Dask scheduler answers at tcp://127.0.0.1:9 within 1 s"),
        cluster("tcp://127.0.0.1:9", timeout=1),
    ):
        pass
    with pytest.raises(UserError, match="is no address"), cluster("bogus://nowhere", timeout=1):
        pass
    with pytest.raises(UserError, match="dask is a int"), cluster(3):
        pass
    with (
        distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty,
        pytest.raises(UserError, match=r"has no worker after 0[.]5 s"),
        cluster(empty.scheduler_address, timeout=0.5),
    ):
        pass
    with distributed.Client(machines.scheduler_address, set_as_default=False) as closed:
        pass
    with pytest.raises(UserError, match="client is closed"), cluster(closed):
        pass


def test_bad_arguments(tmp_path: Path) -> None:
    y = OBSERVATIONS
    with pytest.raises(UserError, match="observation 0 is a Tensor: TemperedSMC needs targets, or problem="):
        sample_many(METHOD, y, 10, tmp_path / "a.zarr")
    with pytest.raises(UserError, match="observation 0 is a Energy already"):
        sample_many(METHOD, [Energy(lambda x: x.sum(1), 2)], 10, tmp_path / "a.zarr", problem=EXACT.problem)
    with pytest.raises(UserError, match="takes no refine here"):
        sample_many(METHOD, y, 10, tmp_path / "a.zarr", problem=EXACT.problem, refine=True)
    with pytest.raises(UserError, match="there are no observations"):
        sample_many(METHOD, [], 10, tmp_path / "a.zarr", problem=EXACT.problem)
    with pytest.raises(UserError, match=r"give a path like draws[.]zarr"):
        sample_many(METHOD, y, 10, tmp_path / "a.nc", problem=EXACT.problem)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("all of it")
    with pytest.raises(UserError, match="holds no draws: it is not overwritten"):
        sample_many(METHOD, y, 10, tmp_path / "mine", problem=EXACT.problem, resume=False)
    assert not list(tmp_path.glob("*.partial"))
