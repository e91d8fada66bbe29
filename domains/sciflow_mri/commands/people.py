"""Whose heads a model is trained on, who is held out, and what an older model has seen of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow_mri.data.volumes import read_volume
from sciflow_mri.model.training_images import training_images

__all__ = ["Heads", "numbers", "started"]


class Heads:
    """Volumes, one per person, of whom some are held out; checked before anything is read.

    `own` are the names of those who are trained on.

    Raises `UserError` for a target that is no model, names that are not unique or unknown, and if nobody is left to train on.
    """

    def __init__(self, volumes: tuple[Path, ...], hold_out: tuple[str, ...], licences: tuple[str, ...], target: Path) -> None:
        _refuse_target(target)
        self.paths, self.held = _people(volumes), hold_out
        if unknown := sorted(set(hold_out) - set(self.paths)):
            raise UserError(f"--hold-out {unknown[0]}: nobody is called so; there are {', '.join(self.paths)}")
        self.own = [name for name in self.paths if name not in hold_out]
        if not self.own:
            raise UserError("--hold-out leaves nobody to train on: give more volumes, one per person")
        self.licences = _licences(licences, self.paths)
        self._read: dict[str, xr.DataArray] = {}

    def read(self, *, clip: bool) -> None:
        """Read all volumes."""
        self._read = {name: read_volume(path, clip=clip) for name, path in self.paths.items()}

    def volumes(self, names: Iterable[str]) -> dict[str, tuple[Any, tuple[float, float, float]]]:
        """Values (z, y, x) and voxel size of people."""
        return {name: (self._read[name].values, tuple(self._read[name].attrs["voxel_size_mm"])) for name in names}

    def images(self, size: int, training: int, validation: int, seed: int) -> tuple[Tensor, Tensor]:
        """`training_images` of those trained on (of the seed), and of those held out (of the next)."""
        found = []
        for names, count, number in ((self.own, training, seed), (self.held, validation, seed + 1)):
            values, spacings = zip(*self.volumes(names).values(), strict=True)
            found.append(training_images(values, count, size, seed=number, spacings=spacings))
        return found[0], found[1]

    def record(self) -> dict[str, Any]:
        """Licences and sources, for the model's README."""
        return {
            "licence": "; ".join(f"{name}: {text}" for name, text in self.licences.items()),
            "training": {name: _source(self._read[name]) for name in self.own},
            "held out": {name: _source(self._read[name]) for name in self.held},
        }


def numbers(text: str) -> tuple[int, ...]:
    """Widths given as text."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--widths {text}: positive integers separated by commas are needed, for example 64,128,192")
    return tuple(int(word) for word in words)


def started(folder: Path, size: int, held: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The flow of an older model that has not seen whoever is held out, and a record of it."""
    if not (folder / "config.json").is_file():
        raise UserError(f"--start {folder}: no model folder (one has a config.json)")
    flow = sciflow.load(folder, trust=("sciflow_mri",))
    shape = tuple(getattr(flow, "event_shape", ()))
    if shape != (2, size, size) or not hasattr(getattr(flow, "network", None), "data_scale"):
        raise UserError(f"--start {folder}: is a {type(flow).__name__} over {shape}, not a prior over (2, {size}, {size})")
    record = sciflow.persistence.metadata(folder)
    seen = _seen(record)
    if seen & set(held) or not seen:
        who = f"has seen {', '.join(sorted(seen & set(held)))}, who is held out" if seen else "does not say whom it has seen"
        raise UserError(f"--start {folder}: {who}: begin with another model, or hold out somebody else")
    return flow, {"begun with": {"model": folder.name, "sha256": sciflow.persistence.fingerprint(flow), **record}}


def _seen(record: dict[str, Any]) -> set[str]:
    """Whom a model has been trained on, and those before it that it began with."""
    before = record.get("begun with")
    return set(record.get("training", ())) | (_seen(before) if isinstance(before, dict) else set())


def _people(volumes: tuple[Path, ...]) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in volumes:
        name = path.name.removesuffix(".gz").removesuffix(".nii")
        if name in found:
            raise UserError(f"{path} and {found[name]} are both called {name}: one volume per person, with names of their own")
        found[name] = path
    return found


def _licences(licences: tuple[str, ...], people: dict[str, Path]) -> dict[str, str]:
    stated = dict.fromkeys(people, "not stated")
    for entry in licences:
        name, equals, text = entry.partition("=")
        if not equals or name not in people:
            raise UserError(f"--licence {entry}: say NAME=TEXT, with NAME one of {', '.join(people)}")
        stated[name] = text
    return stated


def _source(head: Any) -> str:
    shape = " x ".join(map(str, head.shape))
    return f"{head.attrs['source']}, {shape}, mean {float(np.mean(head.values)):.3g}, sha256 {head.attrs['source_sha256']}"


def _refuse_target(folder: Path) -> None:
    """Before hours of training, not after."""
    if not folder.resolve().parent.is_dir():
        raise UserError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise UserError(f"{folder}: exists and is not a model: it is not overwritten, give another name")
