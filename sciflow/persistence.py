"""Models as folders: `config.json`, `weights.safetensors`, `README.md`. No pickle."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

import sciflow
from sciflow.errors import UserError
from sciflow.files import reason, remove, replace_folder, temporary
from sciflow.half_precision import halved, widened
from sciflow.model_card import model_card
from sciflow.recorded import Recorded, build, configuration
from sciflow.strict_json import dumps, loads, plain

__all__ = ["fingerprint", "load", "metadata", "save"]

_FORMAT, _VERSION = "sciflow.model", 1
_CONFIG, _WEIGHTS, _README = "config.json", "weights.safetensors", "README.md"


def save(
    model: nn.Module, folder: str | Path, *, readme: str | None = None, metadata: Mapping[str, Any] | None = None,
    half: bool = False,
) -> Path:  # fmt: skip
    """Save a recorded module as a folder: constructor arguments in JSON, weights in safetensors, a README.

    The folder appears whole or not at all; an older model of that name is replaced at once. Saved are parameters and
    persistent buffers of every dtype, shared tensors once. Lists among the arguments come back as tuples.

    Arguments:
        readme: text for the top of the README: what the model is for, what it was trained on.
        metadata: anything JSON can hold. The entries "license" (or "licence") and numbers are shown in the README.
        half: store matrices and kernels of float32 in float16: half the bytes, 11 bits a number. They come back as float32.

    Raises `UserError` if the model is not `Recorded`, if a parameter is not finite (buffers, such as limits, may be
    infinite and may mark what is missing by NaN), if an argument cannot be written down, if `folder` holds
    something else than a model, or if it cannot be written.

    >>> import tempfile
    >>> from sciflow.distributions import DiagonalNormal
    >>> load(save(DiagonalNormal(2), Path(tempfile.mkdtemp()) / "normal")).event_shape
    torch.Size([2])
    """
    if not (isinstance(model, nn.Module) and isinstance(model, Recorded)):
        raise UserError(
            f"cannot save a {type(model).__name__}: it must be a torch.nn.Module derived from sciflow.recorded.Recorded, "
            "which remembers its constructor's arguments"
        )
    folder = Path(folder).resolve()
    _check_target(folder)
    tensors, aliases, as_pairs = _state(model)
    _check_finite(model)
    in_half = halved(model, tensors) if half else []
    content = write_tensors(tensors, metadata={"format": "pt"})
    config = {
        "format": _FORMAT,
        "version": _VERSION,
        "sciflow": sciflow.__version__,
        "model": configuration(model),
        "weights": {"file": _WEIGHTS, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()},
        "aliases": aliases,
        "complex": as_pairs,
        **({"half": in_half} if half else {}),
        "transient": {name: str(entry.dtype).removeprefix("torch.") for name, entry in _transient(model).items()},
        "frozen": sorted(name for name, parameter in model.named_parameters() if not parameter.requires_grad),
        "metadata": plain(metadata or {}, "metadata"),
    }
    beside = temporary(folder)
    try:
        remove(beside)
        beside.mkdir(parents=True)
        (beside / _WEIGHTS).write_bytes(content)
        (beside / _README).write_text(model_card(model, config, readme, folder.name), encoding="utf-8")
        (beside / _CONFIG).write_text(dumps(config) + "\n", encoding="utf-8")
        replace_folder(beside, folder)
    except OSError as error:
        raise UserError(f"{folder}: the model cannot be written: {reason(error)}") from error
    finally:
        remove(beside)
    return folder


def load(folder: str | Path, *, trust: Iterable[str] = (), device: torch.device | str | None = None) -> Any:
    """The model that `save` wrote, in evaluation mode, with the dtypes it was saved with.

    Arguments:
        trust: packages beside sciflow whose classes may be built. Importing a package runs its code, so a model
            folder cannot choose that by itself.
        device: where to put it; the CPU by default.

    Raises `UserError`, naming file and reason, if the folder is missing, foreign, damaged, from a newer version, or does
    not fit the class it names. torch's random state is left as it was.
    """
    folder = Path(folder)
    trust = (trust,) if isinstance(trust, str) else tuple(trust)
    config, tensors = _read(folder)
    try:
        with torch.random.fork_rng(devices=[]):
            model = build(config["model"], trust=trust)
        if not isinstance(model, nn.Module):
            raise UserError(f"{config['model']['class']} is not a torch.nn.Module")
        _fill(model, config, tensors)
        return model.to(device).eval()
    except UserError as error:
        raise UserError(f"{folder}: {error}") from error
    except (LookupError, TypeError, AttributeError, ValueError, RuntimeError, ArithmeticError, AssertionError) as error:
        raise UserError(f"{folder / _CONFIG}: the model cannot be built: {type(error).__name__} {reason(error)}") from error


def metadata(folder: str | Path) -> dict[str, Any]:
    """The metadata of a saved model, without building it. Raises `UserError` like `load`."""
    return _config(Path(folder))["metadata"]


def fingerprint(model: nn.Module) -> str:
    """The sha256 of the weights, wherever they came from: the one that `save` records, unless it stored half of their bits."""
    return hashlib.sha256(write_tensors(_state(model)[0], metadata={"format": "pt"})).hexdigest()


def _state(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """Contiguous CPU tensors by name; alias -> name of the same tensor; names of complex tensors stored as pairs."""
    tensors: dict[str, Tensor] = {}
    aliases: dict[str, str] = {}
    as_pairs: list[str] = []
    first: dict[tuple, str] = {}
    for name, tensor in model.state_dict().items():
        if not isinstance(tensor, Tensor):
            raise UserError(f"cannot save {name!r} of {type(model).__name__}: it is a {type(tensor).__name__}, not a tensor")
        if tensor.is_meta:
            raise UserError(f"cannot save {name!r} of {type(model).__name__}: it is on the meta device and has no values")
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        if tensor.numel() and first.setdefault(identity, name) != name:
            aliases[name] = first[identity]
            continue
        if tensor.is_complex():
            as_pairs.append(name)
            tensor = torch.view_as_real(tensor.resolve_conj())
        # a copy: views into one storage are separate tensors in the file
        tensors[name] = tensor.detach().to("cpu").resolve_neg().clone(memory_format=torch.contiguous_format)
    return tensors, aliases, as_pairs


def _check_finite(model: nn.Module) -> None:
    for name, parameter in model.named_parameters():
        values = parameter.detach()
        if values.is_floating_point() or values.is_complex():
            # types of one byte lack most operations
            bad = int((~torch.isfinite(values.float() if values.element_size() == 1 else values)).sum())
            if bad:
                raise UserError(
                    f"cannot save {name!r} of {type(model).__name__}: {bad} of its {values.numel()} numbers are not finite; "
                    "the training diverged, save a model from before"
                )


def _transient(model: nn.Module) -> dict[str, Tensor]:
    """Buffers that are rebuilt by the constructor instead of saved; only their dtype is kept."""
    kept = model.state_dict().keys()
    return {name: entry for name, entry in model.named_buffers() if name not in kept and entry.is_floating_point()}


def _fill(model: nn.Module, config: dict[str, Any], tensors: dict[str, Tensor]) -> None:
    found = {name: torch.view_as_complex(t) if name in config["complex"] else t for name, t in tensors.items()}
    found.update({alias: found[name] for alias, name in config["aliases"].items()})
    expected = model.state_dict(keep_vars=True)
    for problem, names in (("lacks", expected.keys() - found.keys()), ("has the superfluous", found.keys() - expected.keys())):
        if names:
            raise UserError(f"{_WEIGHTS} {problem} {', '.join(map(repr, sorted(names)[:3]))} ({len(names)} tensors)")
    for name, target in expected.items():
        if target.shape != found[name].shape:
            raise UserError(f"{_WEIGHTS}: {name!r} has shape {tuple(found[name].shape)}, the model needs {tuple(target.shape)}")
    with torch.no_grad():
        for name, target in expected.items():
            if target.dtype != found[name].dtype:
                target.data = target.data.to(found[name].dtype)  # keeps the object, so that sharing survives
        model.load_state_dict(found)  # the modules' own way: some keep what follows from a tensor beside it
        for name, buffer in _transient(model).items():
            if name in config["transient"]:
                buffer.data = buffer.data.to(getattr(torch, config["transient"][name]))
    frozen = set(config["frozen"])
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name not in frozen)


def _check_target(folder: Path) -> None:
    if not folder.exists():
        return
    if not folder.is_dir():
        raise UserError(f"{folder} is a file: a model is saved as a folder, give another name")
    names = {entry.name for entry in folder.iterdir()}
    if not names:
        return
    try:
        _config(folder, newer=True)
    except UserError as error:
        raise UserError(f"{folder} exists and is not a model: it is not overwritten, give another name") from error
    strange = sorted(names - {_CONFIG, _WEIGHTS, _README})
    if strange:
        raise UserError(f"{folder} holds {strange[0]!r}, which would be lost: move it away or give another name")


def _config(folder: Path, *, newer: bool = False) -> dict[str, Any]:
    path = folder / _CONFIG
    try:
        config = loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        problem = f"no {_CONFIG} in it: not a model folder" if folder.is_dir() else "no such folder"
        raise UserError(f"{folder}: {problem}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON, or cut short: {error}") from error
    if not isinstance(config, dict) or config.get("format") != _FORMAT:
        raise UserError(f"{path}: written by another program: it has no entry 'format': '{_FORMAT}'")
    version = config.get("version")
    if type(version) is not int or (version > _VERSION and not newer):
        raise UserError(f"{path}: format version {version}, this sciflow reads up to {_VERSION}: update sciflow")
    needed = {"model", "weights", "aliases", "complex", "transient", "frozen", "metadata"}
    if needed - config.keys() and not newer:
        raise UserError(f"{path}: the entry {min(needed - config.keys())!r} is missing")
    if not isinstance(config.get("model"), dict) or "class" not in config["model"]:
        raise UserError(f"{path}: the entry 'model' is not a class with arguments")
    return config


def _read(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    config, path = _config(folder), folder / _WEIGHTS
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {reason(error)}") from error
    weights = config["weights"]
    if not isinstance(weights, dict) or len(content) != weights.get("bytes"):
        size = weights.get("bytes") if isinstance(weights, dict) else None
        raise UserError(f"{path}: {len(content)} bytes, {_CONFIG} says {size}: the file is cut short or another model's")
    if hashlib.sha256(content).hexdigest() != weights.get("sha256"):
        raise UserError(f"{path}: its sha256 is not the one in {_CONFIG}: the file is damaged or another model's")
    try:
        return config, widened(read_tensors(content), config.get("half", []))
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not a safetensors file: {error}") from error
