"""Checkpoints: killed trainings, damaged files, other data."""

from __future__ import annotations

import json
import logging
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import nn

from sciflow.errors import UserError
from sciflow.flows import NeuralSplineFlow
from sciflow.training import checkpoint, fit

JOBS = Path(__file__).with_name("jobs.py")


def start(folder: Path, output: Path) -> subprocess.Popen[bytes]:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, str(JOBS), "killed", str(folder), str(output)], env=environment)


def read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, json.loads(file.metadata()["result"])  # noqa: SIM118


@pytest.mark.timeout(240)
def test_killed_and_resumed_is_bit_identical(tmp_path: Path) -> None:
    """SIGKILL at two random moments inside training; then weights and history equal those of an uninterrupted run.

    EMA, one-cycle schedule, clipping, weight decay, early stopping, random objective and multipliers all have state.
    """
    whole = start(tmp_path / "whole", tmp_path / "whole.safetensors")
    assert whole.wait(120) == 0
    chance = random.Random()
    folder, output = tmp_path / "killed", tmp_path / "killed.safetensors"
    kills = 0
    while kills < 2:
        job = start(folder, output)
        before = _stamp(folder)
        while _stamp(folder) == before and job.poll() is None:
            time.sleep(0.005)  # until it has written a checkpoint of its own
        time.sleep(chance.uniform(0.0, 0.25))
        job.send_signal(signal.SIGKILL)
        if job.wait(60) == 0:  # the machine was faster than we
            break
        assert job.returncode == -signal.SIGKILL
        assert not output.exists()
        kills += 1
    assert kills >= 1
    assert output.exists() or start(folder, output).wait(120) == 0
    (weights, numbers), (expected, reference) = read(output), read(tmp_path / "whole.safetensors")
    assert reference["reason"] == "early stopping"
    assert numbers == reference
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    assert not list(folder.glob("*.tmp-*"))  # what a kill leaves behind is swept up


def _stamp(folder: Path) -> int:
    try:
        return (folder / checkpoint.FILE).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@pytest.fixture
def rows() -> torch.Tensor:
    return torch.randn(200, 2, generator=torch.Generator().manual_seed(0))


def train(rows: torch.Tensor, folder: Path, **options: Any) -> tuple[nn.Module, Any]:
    torch.manual_seed(1)
    flow = Shift()
    settings = {"epochs": 3, "batch_size": 50, "checkpoint": folder, "progress": False, "schedule": "constant"} | options
    return flow, fit(flow, rows, **settings)


class Shift(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.loc = nn.Parameter(torch.randn(2))

    def forward(self, condition: Any = None) -> torch.distributions.Distribution:
        return torch.distributions.Independent(torch.distributions.Normal(self.loc, torch.ones(2)), 1)


def test_longer_training_equals_one_that_was_planned_so(rows: torch.Tensor, tmp_path: Path) -> None:
    """With a constant rate more epochs may be asked for on resuming; at the same number nothing is done."""
    train(rows, tmp_path / "a", epochs=2)
    longer, _ = train(rows, tmp_path / "a", epochs=5, resume=True)
    whole, result = train(rows, tmp_path / "b", epochs=5, resume=True)  # nothing to resume: starts afresh
    assert torch.equal(longer.loc, whole.loc)
    again, repeated = train(rows, tmp_path / "b", epochs=5, resume=True)
    assert torch.equal(again.loc, whole.loc)
    assert repeated.history == result.history


def test_other_arguments_or_data_are_refused(rows: torch.Tensor, tmp_path: Path) -> None:
    train(rows, tmp_path)
    with pytest.raises(UserError, match="batch_size was 50 in the checkpoint and is 40 now"):
        train(rows, tmp_path, batch_size=40, resume=True)
    with pytest.raises(UserError, match=r"data was 180 rows, hash .* and is 180 rows, hash"):
        train(rows + 1, tmp_path, resume=True)
    with pytest.raises(UserError, match="schedule was constant"):
        train(rows, tmp_path, schedule="cosine", resume=True)
    with pytest.raises(UserError, match="needs the folder"):
        fit(Shift(), rows, resume=True)
    with pytest.raises(UserError, match="no folder for checkpoints"):
        train(rows, tmp_path / checkpoint.FILE)
    train(rows, tmp_path, batch_size=40)  # without resume: a new training in the old folder
    assert checkpoint.read(tmp_path)["arguments"]["batch_size"] == 40  # type: ignore[index]


def test_a_flow_with_other_arguments_is_refused(rows: torch.Tensor, tmp_path: Path) -> None:
    """The bound of the splines shows in no shape of a weight."""
    arguments: dict[str, Any] = {"epochs": 1, "progress": False, "checkpoint": tmp_path, "resume": True}
    fit(NeuralSplineFlow(2, transforms=2, hidden=(8,), bound=5.0), rows, **arguments)
    with pytest.raises(UserError, match="flow was NeuralSplineFlow"):
        fit(NeuralSplineFlow(2, transforms=2, hidden=(8,), bound=4.0), rows, **arguments)


FULL = """
import resource, sys
from pathlib import Path
import torch
from sciflow.errors import UserError
from sciflow.training import checkpoint
checkpoint.write(Path(sys.argv[1]), {"a": torch.zeros(3)})
resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))  # every longer file fails like a full disk
try:
    checkpoint.write(Path(sys.argv[1]), {"a": torch.zeros(100_000)})
except UserError as error:
    print("refused:", error)
"""


def test_a_full_disk_gives_one_line_and_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", FULL, str(tmp_path)], capture_output=True, text=True, timeout=100)
    assert "cannot be written" in done.stdout and len(done.stdout.splitlines()) == 1, done.stdout + done.stderr
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    assert torch.equal(checkpoint.read(tmp_path)["a"], torch.zeros(3))  # type: ignore[index]


@pytest.mark.parametrize("damage", ["truncated", "flipped", "foreign"])
def test_damaged_checkpoint_falls_back_to_the_previous(
    rows: torch.Tensor, tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole, _ = train(rows, tmp_path)
    path = tmp_path / checkpoint.FILE
    content = path.read_bytes()
    if damage == "truncated":
        path.write_bytes(content[:-7])
    elif damage == "flipped":
        path.write_bytes(content[:-7] + bytes([content[-7] ^ 1]) + content[-6:])
    else:
        path.write_bytes(b"not a checkpoint")
    with caplog.at_level(logging.WARNING):
        resumed, _ = train(rows, tmp_path, resume=True)
    assert torch.equal(resumed.loc, whole.loc)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2
    assert "is damaged" in messages[0] and "\n" not in messages[0] and "previous" in messages[1]


def test_only_damaged_checkpoints_are_an_error(rows: torch.Tensor, tmp_path: Path) -> None:
    train(rows, tmp_path)
    for name in (checkpoint.FILE, checkpoint.PREVIOUS):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(UserError, match="is damaged"):
        train(rows, tmp_path, resume=True)


def test_newer_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "VERSION", 7)
    checkpoint.write(tmp_path, {"a": torch.ones(1)})
    monkeypatch.setattr(checkpoint, "VERSION", 1)
    with pytest.raises(UserError, match="format version 7"):
        checkpoint.read(tmp_path)


def test_any_nesting_survives(tmp_path: Path) -> None:
    nested = {"b": torch.arange(3), "": True}
    state = {"a": [1, 0.1, None, float("inf"), nested], "c": {}, "d": torch.zeros(0, 2), "tensor": "x"}
    checkpoint.write(tmp_path, state)
    found = checkpoint.read(tmp_path)
    assert found is not None
    assert torch.equal(found["a"][4].pop("b"), nested.pop("b"))
    assert found.pop("d").shape == state.pop("d").shape
    assert found == state


def test_failed_write_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.write(tmp_path, {"a": 1})

    def interrupt(*_: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        checkpoint.write(tmp_path, {"a": 2})
    assert [path.name for path in tmp_path.iterdir()] == [checkpoint.FILE]
    assert checkpoint.read(tmp_path) == {"a": 1}
