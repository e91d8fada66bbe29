"""Saved models: exact round trips for every kind of tensor, one-line reasons for every damage, nothing half written."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch import nn

import sciflow
from sciflow.distributions import DiagonalNormal
from sciflow.errors import UserError
from sciflow.flows import LayeredFlow
from sciflow.persistence import fingerprint, load, metadata, save
from sciflow.recorded import Recorded

TRUST = (__name__.partition(".")[0],)


class Everything(nn.Module, Recorded):
    """Tensors of every kind that a state dict may hold."""

    def __init__(self, size: int = 3, sizes=(1, 2), scale: float = float("inf"), inner: nn.Module | None = None) -> None:
        super().__init__()
        self.sizes, self.scale, self.inner = sizes, scale, inner
        self.weight = nn.Parameter(torch.randn(size, 4).T)
        self.tied = self.weight
        self.low = nn.Parameter(torch.randn(2).to(torch.bfloat16))
        self.scalar = nn.Parameter(torch.randn(()), requires_grad=False)
        for name, value in {
            "flags": torch.rand(5) > 0.5,
            "integers": torch.tensor([2**62, -1]),
            "bytes_": torch.arange(3, dtype=torch.uint8),
            "doubles": torch.randn(3, dtype=torch.float64),
            "empty": torch.empty(0, 3),
            "number": torch.tensor(7),
            "waves": torch.randn(2, 3, dtype=torch.complex128).T,
            "conjugate": torch.randn(2, dtype=torch.complex64).conj(),
        }.items():
            self.register_buffer(name, value)
        whole = torch.randn(8)
        self.register_buffer("part", whole[2:5])
        self.register_buffer("overlap", whole[3:6])
        self.register_buffer("transient", torch.arange(2.0), persistent=False)
        self.dropout = nn.Dropout()


class Shift(nn.Module, Recorded):
    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.shift = nn.Parameter(torch.randn(size))


class Other(nn.Module, Recorded):
    def __init__(self) -> None:
        super().__init__()


def state_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert torch.equal(a[name], b[name]), name


def test_every_kind_of_tensor_comes_back_exactly(tmp_path) -> None:
    model = Everything(3, sizes=[1, [2, 3]], inner=Everything(2))
    before = state_of(model)
    back = load(save(model, tmp_path / "a" / "model"), trust=TRUST)
    assert_same(state_of(back), before)
    assert_same(state_of(model), before)
    assert back.tied is back.weight and back.inner.tied is back.inner.weight
    assert back.sizes == (1, (2, 3)) and back.scale == float("inf")
    assert not back.scalar.requires_grad and back.weight.requires_grad
    assert not back.training and not back.dropout.training and model.training
    assert sorted(p.name for p in (tmp_path / "a" / "model").iterdir()) == ["README.md", "config.json", "weights.safetensors"]
    assert [p.name for p in (tmp_path / "a").iterdir()] == ["model"]


def test_loaded_dtype_is_the_saved_dtype(tmp_path) -> None:
    model = Everything().double()
    back = load(save(model, tmp_path / "model"), trust=TRUST)
    assert back.weight.dtype == back.low.dtype == back.transient.dtype == torch.float64
    assert back.tied is back.weight
    assert_same(state_of(back), state_of(model))
    low = load(save(Shift().to(torch.bfloat16), tmp_path / "low"), trust=TRUST)
    assert low.shift.dtype == torch.bfloat16


def test_half_of_the_bytes(tmp_path) -> None:
    """Kernels come back as float32 with 11 bits, everything else exactly; what float16 cannot hold is refused."""
    whole = Everything()
    small, large = save(whole, tmp_path / "half", half=True), save(whole, tmp_path / "whole")
    found = load(small, trust=TRUST)
    assert found.weight.dtype is torch.float32 and found.weight.data_ptr() == found.tied.data_ptr()
    torch.testing.assert_close(found.weight, whole.weight, rtol=2**-11, atol=1e-7)
    assert not torch.equal(found.weight, whole.weight) and torch.equal(found.low, whole.low)
    assert (small / "weights.safetensors").stat().st_size < (large / "weights.safetensors").stat().st_size
    save(found, tmp_path / "again", half=True)
    assert torch.equal(load(tmp_path / "again", trust=TRUST).weight, found.weight)
    with torch.no_grad():
        whole.weight[0, 0] = 1e6
    with pytest.raises(UserError, match="beyond 65504"):
        save(whole, tmp_path / "half", half=True)


def test_a_flow_with_a_condition(tmp_path) -> None:
    flow = LayeredFlow(2, {"a": 1, "b": (2, 3)}, base=DiagonalNormal(2))
    back = load(save(flow, tmp_path / "flow"))
    condition = {"a": torch.zeros(5, 1), "b": torch.ones(5, 2, 3)}
    assert torch.equal(back(condition).log_prob(torch.ones(5, 2)), flow(condition).log_prob(torch.ones(5, 2)))
    assert sciflow.load is load and sciflow.save is save


def test_preprocessing_and_spline_flow_as_one_model(tmp_path) -> None:
    from sciflow.flows import NeuralSplineFlow, Preprocessed
    from sciflow.preprocessing import Column, Preprocessing

    x = torch.rand(200, 2, dtype=torch.float64)
    x[:60, 0] = 0
    preprocessing = Preprocessing([Column("a", transform="log", point_mass=0.0), Column("b")]).fit(x)
    model = Preprocessed(NeuralSplineFlow(2, condition=1, transforms=2, hidden=(8,)), features=preprocessing).eval()
    back = load(save(model, tmp_path / "model"))
    assert_same(state_of(back), state_of(model))
    assert fingerprint(back) == fingerprint(model)
    values, condition = preprocessing.dequantise(x, torch.arange(200)), torch.zeros(1)
    assert torch.equal(back(condition).log_prob(values), model(condition).log_prob(values))


def test_random_state_is_left_alone(tmp_path) -> None:
    save(Shift(), tmp_path / "model")
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    load(tmp_path / "model", trust=TRUST)
    assert torch.equal(torch.rand(2), expected)


def test_config_readme_and_fingerprint(tmp_path) -> None:
    model = Shift(1234)
    facts = {"license": "CC0-1.0", "auc": {"after": 0.512, "error": float("nan")}, "data": "Zee | 2011"}
    facts["history"] = list(range(99))
    folder = save(model, tmp_path / "model", readme="Corrects showers.", metadata=facts)
    config = json.loads((folder / "config.json").read_text(), parse_constant=pytest.fail)
    digest = hashlib.sha256((folder / "weights.safetensors").read_bytes()).hexdigest()
    assert config["format"] == "sciflow.model" and config["version"] == 1
    assert config["weights"]["sha256"] == digest == fingerprint(model) == fingerprint(load(folder, trust=TRUST))
    assert fingerprint(Shift(1234)) != digest
    text = (folder / "README.md").read_text()
    rows = ("| parameters | 1,234 |", "| licence | CC0-1.0 |", "| auc.after | 0.512 |", "| data | Zee \\| 2011 |")
    for piece in ("Corrects showers.", digest, *rows):
        assert piece in text
    assert "history" not in text and f'trust=("{TRUST[0]}",)' in text
    assert metadata(folder)["auc"]["after"] == 0.512 and metadata(folder)["history"] == list(range(99))
    assert "| licence | not stated |" in (save(Shift(), tmp_path / "b") / "README.md").read_text()
    again = save(model, tmp_path / "c", readme="Corrects showers.", metadata=facts)
    assert (again / "config.json").read_bytes() == (folder / "config.json").read_bytes()


def damaged(tmp_path: Path, how: str) -> Path:
    folder = save(Shift(), tmp_path / "model")
    config, weights = folder / "config.json", folder / "weights.safetensors"
    content = json.loads(config.read_text())
    data = weights.read_bytes()

    def rehash(new: bytes) -> None:
        weights.write_bytes(new)
        content["weights"].update(bytes=len(new), sha256=hashlib.sha256(new).hexdigest())

    match how:
        case "no folder":
            return tmp_path / "absent"
        case "no config":
            config.unlink()
        case "no weights":
            weights.unlink()
        case "short weights":
            weights.write_bytes(data[:-5])
        case "short weights with a matching hash":
            rehash(data[:-5])
        case "flipped bit":
            weights.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        case "not safetensors":
            rehash(b"PK\x03\x04 something else entirely")
        case "short config":
            config.write_text(config.read_text()[:-30])
        case "empty config":
            config.write_text("")
        case "foreign config":
            config.write_text('{"architectures": ["Bert"]}')
        case "binary config":
            config.write_bytes(b"\xff\xfe\x00")
        case "newer":
            content["version"] = 2
        case "lacking entry":
            del content["frozen"]
        case "lacking tensor":
            other = save(Other(), tmp_path / "other")
            rehash((other / "weights.safetensors").read_bytes())
        case "superfluous tensor":
            content["model"] = {"class": f"{__name__}:Other", "arguments": {}}
        case "ill-shaped tensor":
            content["model"]["arguments"]["size"] = 5
        case "foreign class":
            content["model"]["class"] = "os:system"
        case "missing class":
            content["model"]["class"] = "sciflow.flows:Vanished"
        case "wrong argument":
            content["model"]["arguments"] = {"sice": 4}
        case "wrong type":
            content["model"]["arguments"] = {"size": "four"}
        case "negative size":
            content["model"]["arguments"]["size"] = -4
        case "deeply nested":
            config.write_text("[" * 100_000)
        case "not a model":
            content["model"] = 3
        case "strange aliases":
            content["aliases"] = {"shift": "nowhere"}
        case "strange weights":
            content["weights"] = None
    if config.exists() and not any(word in how for word in ("short config", "empty", "foreign config", "binary", "nested")):
        config.write_text(json.dumps(content))
    return folder


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        ("no folder", "no such folder"),
        ("no config", "not a model folder"),
        ("no weights", r"weights\.safetensors: cannot be read: No such file"),
        ("short weights", r"weights\.safetensors: \d+ bytes, config.json says \d+"),
        ("short weights with a matching hash", "not a safetensors file"),
        ("flipped bit", "sha256"),
        ("not safetensors", "not a safetensors file"),
        ("short config", r"config\.json: not JSON, or cut short"),
        ("empty config", "not JSON"),
        ("foreign config", "another program"),
        ("binary config", "not JSON"),
        ("newer", "format version 2, this sciflow reads up to 1: update sciflow"),
        ("lacking entry", "'frozen' is missing"),
        ("lacking tensor", "lacks 'shift'"),
        ("superfluous tensor", "has the superfluous 'shift'"),
        ("ill-shaped tensor", r"'shift' has shape \(4,\), the model needs \(5,\)"),
        ("foreign class", r"package 'os'; load it with trust=\('os',\)"),
        ("missing class", "has no class"),
        ("wrong argument", "does not take the recorded arguments"),
        ("wrong type", "does not take the recorded arguments"),
        ("negative size", "the model cannot be built: RuntimeError"),
        ("deeply nested", "not JSON"),
        ("not a model", "'model' is not a class with arguments"),
        ("strange aliases", "cannot be built"),
        ("strange weights", "config.json says None"),
    ],
)
def test_damage_is_told_in_one_line(tmp_path, how: str, reason: str) -> None:
    folder = damaged(tmp_path, how)
    with pytest.raises(UserError, match=reason) as caught:
        load(folder, trust=TRUST)
    assert str(folder) in str(caught.value) and "\n" not in str(caught.value)


def test_a_class_outside_trust_is_not_imported(tmp_path) -> None:
    folder = save(Shift(), tmp_path / "model")
    content = json.loads((folder / "config.json").read_text())
    content["model"]["class"] = "antigravity:Module"
    (folder / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="antigravity"):
        load(folder)
    assert "antigravity" not in sys.modules


def test_models_that_cannot_be_saved(tmp_path) -> None:
    class Local(nn.Module, Recorded):
        pass

    for model, reason in (
        (nn.Linear(1, 1), "derived from sciflow.recorded.Recorded"),
        (Local(), "top of a module"),
        (Everything(scale=torch.ones(1)), "cannot record an argument of type Tensor"),
        (Shift().to("meta"), "meta device"),
    ):
        with pytest.raises(UserError, match=reason):
            save(model, tmp_path / "model")
    with pytest.raises(UserError, match=r"metadata\.x is a object"):
        save(Shift(), tmp_path / "model", metadata={"x": object()})
    assert list(tmp_path.iterdir()) == []


def test_only_models_are_overwritten(tmp_path) -> None:
    folder = save(Shift(), tmp_path / "model")
    model = Shift(5)
    save(model, folder)
    assert_same(state_of(load(folder, trust=TRUST)), state_of(model))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"holds 'notes\.txt'"):
        save(Shift(), folder)
    (tmp_path / "home").mkdir()
    save(Shift(), tmp_path / "home")  # an empty folder is free
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "a.csv").write_text("1")
    (tmp_path / "file").write_text("1")
    for name, reason in (("data", "is not a model"), ("file", "is a file")):
        with pytest.raises(UserError, match=reason):
            save(Shift(), tmp_path / name)
    assert (tmp_path / "data" / "a.csv").read_text() == "1" and (folder / "notes.txt").read_text() == "mine"
    content = json.loads((tmp_path / "home" / "config.json").read_text())
    (tmp_path / "home" / "config.json").write_text(json.dumps({**content, "version": 9}))
    save(Shift(), tmp_path / "home")  # newer, but a model


def test_a_link_to_a_model_stays_a_link(tmp_path) -> None:
    save(Shift(), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    model = Shift()
    save(model, tmp_path / "link")
    assert (tmp_path / "link").is_symlink()
    assert_same(state_of(load(tmp_path / "real", trust=TRUST)), state_of(model))


@pytest.mark.parametrize("exchange", [True, False])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("where", ["write_bytes", "fsync", "replace"])
def test_an_interrupted_save_keeps_the_old_model(tmp_path, monkeypatch, where: str, error, exchange: bool) -> None:
    old = Shift()
    folder = save(old, tmp_path / "model")

    def fail(*arguments, **options):
        raise error

    with monkeypatch.context() as patch:
        if not exchange:
            patch.setattr("sciflow.files._exchange", lambda a, b: False)
        target = {"write_bytes": Path, "fsync": os, "replace": os}[where]
        patch.setattr(target, where, fail)
        if where == "replace" and exchange:
            save(old, folder)  # the exchange needs no replace
        elif not (where == "fsync" and isinstance(error, OSError)):
            with pytest.raises(UserError if isinstance(error, OSError) else KeyboardInterrupt) as caught:
                save(Shift(), folder)
            assert isinstance(error, KeyboardInterrupt) or str(caught.value).endswith("No space left on device")
    assert_same(state_of(load(folder, trust=TRUST)), state_of(old))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


def test_the_second_rename_fails_without_an_exchange(tmp_path, monkeypatch) -> None:
    old = Shift()
    folder = save(old, tmp_path / "model")
    replace, calls = os.replace, []

    def second_fails(a, b):
        calls.append(a)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(a, b)

    monkeypatch.setattr("sciflow.files._exchange", lambda a, b: False)
    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(UserError, match="Input/output error"):
        save(Shift(), folder)
    assert len(calls) == 3
    assert_same(state_of(load(folder, trust=TRUST)), state_of(old))
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs the exchange of two names")
def test_killed_while_overwriting_there_is_always_a_whole_model(tmp_path) -> None:
    code = f"""
import sys
sys.path.insert(0, {str(Path(sciflow.__file__).parents[1])!r})
from sciflow.distributions import DiagonalNormal
from sciflow.persistence import save
n = 0
while True:
    save(DiagonalNormal(n % 50 + 1), {str(tmp_path / "model")!r}, metadata={{"n": n}})
    n += 1
    print(n, flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        for _ in range(60):
            time.sleep(0.003)
            process.send_signal(signal.SIGSTOP)  # any moment of the writing, seen as a kill would leave it
            found = load(tmp_path / "model")
            assert found.event_shape[0] == metadata(tmp_path / "model")["n"] % 50 + 1
            process.send_signal(signal.SIGCONT)
    finally:
        process.kill()
        process.wait()
    load(tmp_path / "model")


class Limits(nn.Module, Recorded):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2, 3))
        self.register_buffer("lower", torch.tensor([-torch.inf, torch.nan]))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_parameters_that_are_not_finite_are_refused(tmp_path, value: float) -> None:
    model = Limits()
    save(model, tmp_path / "model")
    with torch.no_grad():
        model.weight[0, :2] = value
    with pytest.raises(UserError, match=r"cannot save 'weight' of Limits: 2 of its 6 numbers are not finite"):
        save(model, tmp_path / "model")
    again = load(tmp_path / "model", trust=TRUST)
    assert again.lower[0] == -torch.inf and again.lower[1].isnan() and again.weight.isfinite().all()


def test_a_loaded_preprocessing_is_fitted_and_an_unfitted_one_is_not(tmp_path) -> None:
    from sciflow.preprocessing import Preprocessing

    x = torch.tensor([[1.0], [3.0]])
    loaded = load(save(Preprocessing(1).fit(x), tmp_path / "fitted"))
    assert torch.equal(torch.export.export(loaded, (x,)).module()(x)[0], loaded(x)[0])
    with pytest.raises(UserError, match="is not fitted"):
        load(save(Preprocessing(1), tmp_path / "fresh"))(x)
