"""Checkpoints of a training: one safetensors file with JSON in its header, replaced atomically, no pickle."""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from pathlib import Path
from typing import Any

import safetensors
import torch
from safetensors.torch import save_file
from torch import Tensor

from sciflow.errors import UserError
from sciflow.files import reason

__all__ = ["FILE", "PREVIOUS", "clean", "prepare", "read", "write"]

FILE, PREVIOUS, VERSION = "checkpoint.safetensors", "checkpoint.previous.safetensors", 1
_log = logging.getLogger(__name__)


def prepare(folder: Path) -> None:
    """Make the folder; `UserError` if it cannot be: before the training rather than after its first epoch."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: no folder for checkpoints: {reason(error)}") from error


def write(folder: Path, state: dict[str, Any]) -> Path:
    """Write a nested dict of tensors and JSON values; the file before it stays as `checkpoint.previous.safetensors`.

    Killed at any moment, the folder holds at least one complete file. Raises `UserError` if it cannot be written.
    """
    tensors, plain = _separate(state)
    header = {"sciflow": json.dumps({"version": VERSION, "digest": _digest(tensors), "state": plain})}
    path, temporary = folder / FILE, folder / f"{FILE}.tmp-{os.getpid()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        save_file(tensors, temporary, metadata=header)
        with open(temporary, "rb+") as file:
            os.fsync(file.fileno())
        if path.exists():
            os.replace(path, folder / PREVIOUS)
        os.replace(temporary, path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: the checkpoint cannot be written: {reason(error)}") from error
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    return path


def read(folder: Path) -> dict[str, Any] | None:
    """The newest complete state of a folder; None if there is no checkpoint.

    A damaged file is reported in one line (logging) and the previous one is used. Raises `UserError` if a checkpoint
    comes from a newer version, or if files exist and none is complete.
    """
    reasons = []
    for path in (folder / FILE, folder / PREVIOUS):
        if not path.exists():
            continue
        try:
            state = _read_file(path)
        except (safetensors.SafetensorError, OSError, KeyError, json.JSONDecodeError, _DamagedError) as error:
            reasons.append(f"{path} is damaged: {str(error).splitlines()[0]}")
            _log.warning("%s", reasons[-1])
            continue
        if reasons:
            _log.warning("resuming from the previous checkpoint, %s", path)
        return state
    if reasons:
        raise UserError(f"{'; '.join(reasons)}; delete the folder's checkpoints or train without resume=True")
    return None


def clean(folder: Path, *, everything: bool) -> None:
    """Remove what a killed process left half-written, and the checkpoints themselves when a new training begins."""
    complete = [folder / FILE, folder / PREVIOUS] if everything else []
    for path in (*complete, *folder.glob(f"{FILE}.tmp-*")):
        path.unlink(missing_ok=True)


class _DamagedError(Exception):
    pass


def _read_file(path: Path) -> dict[str, Any]:
    with safetensors.safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
        if "sciflow" not in metadata:
            raise _DamagedError("it was not written by sciflow.fit")
        header = json.loads(metadata["sciflow"])
        if header["version"] > VERSION:
            raise UserError(
                f"{path} has format version {header['version']}, this version of sciflow reads up to {VERSION}: update"
            )
        # cloned, so that the file may be replaced while its tensors live
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    if _digest(tensors) != header["digest"]:
        raise _DamagedError("its checksum does not agree with its content")
    return _join(header["state"], tensors)


def _digest(tensors: dict[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _separate(state: dict[str, Any]) -> tuple[dict[str, Tensor], Any]:
    """Tensors by running number, and the same nesting with numbers in their places."""
    tensors: dict[str, Tensor] = {}

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            name = f"{len(tensors):06d}"
            tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
            return {"tensor": name}
        if isinstance(value, dict):
            return {"entries": [[key, walk(entry)] for key, entry in value.items()]}
        if isinstance(value, (list, tuple)):
            return [walk(entry) for entry in value]
        return value

    return tensors, walk(state)


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(value, dict):
        if "tensor" in value:
            return tensors[value["tensor"]]
        return {key: _join(entry, tensors) for key, entry in value["entries"]}
    return [_join(entry, tensors) for entry in value] if isinstance(value, list) else value
