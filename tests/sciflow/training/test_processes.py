"""Two processes train what one process trains."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from sciflow.errors import UserError
from sciflow.training import fit

JOBS = Path(__file__).with_name("jobs.py")


def load_jobs() -> Any:
    specification = importlib.util.spec_from_file_location("training_jobs", JOBS)
    assert specification is not None and specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def run_pair(folder: Path, output: Path, job: str = "pair") -> None:
    """Two gloo processes on 127.0.0.1, started with the variables that torchrun sets."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    common = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": "2",
        "LOCAL_WORLD_SIZE": "2",
        "GROUP_RANK": "0",
    }
    common |= {"TORCHELASTIC_RUN_ID": "test", "OMP_NUM_THREADS": "1"}
    jobs = [
        subprocess.Popen(
            [sys.executable, str(JOBS), job, str(folder), str(output)],
            env=os.environ | common | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        for job in jobs:
            text, _ = job.communicate(timeout=120)
            assert job.returncode == 0, text
    finally:
        for job in jobs:
            job.kill()


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["result"])  # noqa: SIM118


def compare(path: Path, reference: Path) -> None:
    (weights, numbers), (expected, wanted) = read(path), read(reference)
    for key in expected:
        torch.testing.assert_close(weights[key], expected[key], rtol=0, atol=1e-10)
    for mine, theirs in zip(numbers["history"], wanted["history"], strict=True):
        assert mine["loss"] == pytest.approx(theirs["loss"], abs=1e-10)
        assert mine["validation_loss"] == pytest.approx(theirs["validation_loss"], abs=1e-10)
        pair = [record["constraints"]["spread"]["multiplier"] for record in (mine, theirs)]
        assert pair[0] == pytest.approx(pair[1], abs=1e-10)


@pytest.mark.timeout(200)
def test_two_processes_reach_the_weights_of_one(tmp_path: Path) -> None:
    """float64, 51 steps of equal global batches; weights differ by row; the last batch has one row for two processes.

    Likelihood and constraint with clipping and EMA: all sums go over processes.
    """
    run_pair(tmp_path / "two", tmp_path / "two.safetensors")
    one = load_jobs().pair(str(tmp_path / "one"), str(tmp_path / "one.safetensors"))
    compare(tmp_path / "two.safetensors", tmp_path / "one.safetensors")
    # the agreement means nothing if the weights have not moved
    assert one.steps == 51
    assert one.history[0]["loss"] - one.history[-1]["loss"] > 0.1
    assert one.history[-1]["constraints"]["spread"]["multiplier"] > 0
    assert not list(tmp_path.glob("*/*.tmp-*"))


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_continue_what_one_began(tmp_path: Path) -> None:
    jobs = load_jobs()
    jobs.pair(str(tmp_path / "one"), str(tmp_path / "one.safetensors"))
    jobs.pair(str(tmp_path / "mixed"), str(tmp_path / "begun.safetensors"), epochs=1)
    run_pair(tmp_path / "mixed", tmp_path / "mixed.safetensors")
    compare(tmp_path / "mixed.safetensors", tmp_path / "one.safetensors")


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_both_processes_tell_the_same_divergence(tmp_path: Path) -> None:
    run_pair(tmp_path / "none", tmp_path / "rows", "diverged")
    assert [(tmp_path / f"rows.{rank}").read_text() for rank in range(2)] == ["[200]", "[200]"]


def test_a_fabric_that_was_not_launched_is_refused() -> None:
    from lightning_fabric import Fabric

    jobs = load_jobs()
    with pytest.raises(UserError, match=r"call fabric.launch\(\) first"):
        fit(jobs.Affine(torch.float64), jobs.pair_data(), fabric=Fabric(accelerator="cpu", devices=2, strategy="ddp"))
