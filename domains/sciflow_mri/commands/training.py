"""What `train` does: a prior from heads of several people, one of whom it never sees."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import sciflow
from sciflow.errors import UserError
from sciflow.files import remove
from sciflow_mri.commands.priors import COVERAGE, OBSERVATION
from sciflow_mri.data.volumes import read_volume
from sciflow_mri.model.prior import image_flow, train_prior
from sciflow_mri.model.training_images import training_images
from sciflow_mri.posterior.coverage import calibrate_coverage
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.observation import fit_observation, observation_features
from sciflow_mri.posterior.reconstruction import checked_device
from sciflow_mri.posterior.simulations import simulated_acquisitions

__all__ = ["train_model"]

_DRAWS = 32  # of each scan, for the coverage of intervals
_SCANS = 100  # simulated, of each person who is trained on, for the test whether a scan is like them


def train_model(
    volumes: tuple[Path, ...], output: Path, *, hold_out: tuple[str, ...], size: int, images: int, validation_images: int,
    epochs: int, minutes: float | None, batch_size: int, learning_rate: float, widths: str, blocks: int, patch: int,
    precision: str, half: bool, clip: bool, coverage_scans: int,
    licences: tuple[str, ...], start: Path | None, checkpoint: Path | None, device: str | None, seed: int,
) -> str:  # fmt: skip
    """Train, save, and return one line on it."""
    _refuse_target(output)
    people = _people(volumes)
    unknown = sorted(set(hold_out) - set(people))
    if unknown:
        raise UserError(f"--hold-out {unknown[0]}: nobody is called so; there are {', '.join(people)}")
    own = [name for name in people if name not in hold_out]
    if not own:
        raise UserError("--hold-out leaves nobody to train on: give more volumes, one per person")
    stated = _licences(licences, people)
    channels = _numbers(widths)
    if device is not None:
        checked_device(device)
    flow, origin = (None, {}) if start is None else _started(start, size, hold_out)
    heads = {name: read_volume(path, clip=clip) for name, path in people.items()}
    spacing: dict[str, Any] = {name: tuple(head.attrs["voxel_size_mm"]) for name, head in heads.items()}
    torch.manual_seed(seed)  # of the first weights
    training, validation = (
        training_images(
            [heads[name].values for name in names], count, size, seed=number, spacings=[spacing[name] for name in names]
        )
        for names, count, number in ((own, images, seed), (list(hold_out), validation_images, seed + 1))
    )
    if flow is None:
        flow = image_flow(size, widths=channels, blocks=blocks, patch=patch, data_scale=float(training.std()))
    began = time.monotonic()
    trained = train_prior(
        training, validation, epochs=epochs, batch_size=batch_size, learning_rate=learning_rate, seed=seed, flow=flow,
        precision="bf16" if precision == "bf16" else None, device=device, checkpoint=checkpoint, resume=checkpoint is not None,
        callbacks=[] if minutes is None else [lambda record: record["seconds"] >= 60 * minutes],
        warmup=min(100, max(epochs * images // batch_size // 10, 1)),
    )  # fmt: skip
    fit = trained.fit
    record = {
        "licence": "; ".join(f"{name}: {text}" for name, text in stated.items()),
        "training": {name: _source(heads[name]) for name in own},
        "held out": {name: _source(heads[name]) for name in hold_out},
        "minutes": round(fit.seconds / 60, 2), "steps": fit.steps, "epochs": len(fit.history), "best epoch": fit.best_epoch,
        "validation loss": fit.best_validation_loss, "images": images, "batch size": batch_size, "seed": seed,
        "learning rate": learning_rate, "precision": precision,
        "history": [[entry["loss"], entry["validation_loss"]] for entry in fit.history], **origin,
    }  # fmt: skip
    for name in (OBSERVATION, COVERAGE):  # of the older model that is replaced
        if (output / name / "config.json").is_file():
            remove(output / name)
    sciflow.save(trained.flow, output, readme=_readme(own, hold_out, size), metadata=record, half=half)
    looked = _observation(trained.flow, {name: (heads[name].values, spacing[name]) for name in own}, size, output, seed)
    if coverage_scans:
        unseen = {name: (heads[name].values, spacing[name]) for name in hold_out}
        interval_coverage(trained.flow, unseen, size, output, scans=coverage_scans, seed=seed)
    loss = (
        "" if fit.best_validation_loss is None else f", validation loss {fit.best_validation_loss:.4g} on {', '.join(hold_out)}"
    )
    return f"{output}: {size} x {size}, {fit.steps} steps in {(time.monotonic() - began) / 60:.1f} min{loss}{looked}"


def _started(folder: Path, size: int, held: Sequence[str]) -> tuple[Any, dict[str, Any]]:
    """The flow of an older model that has not seen whoever is held out, and a record of it."""
    if not (folder / "config.json").is_file():
        raise UserError(f"--start {folder}: no model folder (one has a config.json)")
    flow = sciflow.load(folder)
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


def _observation(flow: Any, people: dict[str, Any], size: int, output: Path, seed: int) -> str:
    if len(people) < 2:
        return "; without a test for scans out of distribution, which takes two people to train on"
    features = {
        name: observation_features(
            [found.acquisition for found in simulated_acquisitions(head, _SCANS, size, seed=seed + 2, spacing=spacing)], flow
        )
        for name, (head, spacing) in people.items()
    }
    sciflow.save(fit_observation(features, (size, size)), output / OBSERVATION, readme="Is a scan like those of the prior?")
    return ""


def interval_coverage(flow: Any, people: dict[str, Any], size: int, output: Path, *, scans: int, seed: int) -> None:
    """How often intervals of draws hold the truth, on simulated scans of people (volume, spacing) who are new to the prior."""
    acquired = {
        name: simulated_acquisitions(head, scans, size, seed=seed + 3, spacing=spacing)
        for name, (head, spacing) in people.items()
    }
    found = calibrate_coverage(flow, acquired, draws=_DRAWS, sampler=default_sampler(flow, states=0), seed=seed)
    sciflow.save(found, output / COVERAGE, readme="How often intervals hold the truth, on simulated scans of people held out.",
                 metadata=found.to_dict())  # fmt: skip


def _readme(own: list[str], held: tuple[str, ...], size: int) -> str:
    return (
        f"A prior over complex coil-combined MR images of {size} x {size}, as real pairs (2, {size}, {size}) whose 95th "
        f"percentile of the magnitude is about 1. Trained on oblique slices of the magnitude images of {', '.join(own)} with "
        f"random contrast, bias field and smooth phase; validated on {', '.join(held)}, of whom no training image was made. "
        "Few people: a demonstration of the method, not a prior for clinical use. Loss histories are in config.json."
    )


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


def _numbers(text: str) -> tuple[int, ...]:
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdigit() and int(word) > 0 for word in words):
        raise UserError(f"--widths {text}: positive integers separated by commas are needed, for example 64,128,192")
    return tuple(int(word) for word in words)


def _source(head: Any) -> str:
    shape = " x ".join(map(str, head.shape))
    return f"{head.attrs['source']}, {shape}, mean {float(np.mean(head.values)):.3g}, sha256 {head.attrs['source_sha256']}"


def _refuse_target(folder: Path) -> None:
    """Before hours of training, not after."""
    if not folder.resolve().parent.is_dir():
        raise UserError(f"{folder}: the folder {folder.resolve().parent} does not exist")
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise UserError(f"{folder}: exists and is not a model: it is not overwritten, give another name")
