"""What `train` does: a prior from heads of several people, one of whom it never sees."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

import sciflow
from sciflow.files import remove
from sciflow_mri.commands.people import Heads, numbers, started
from sciflow_mri.commands.priors import COVERAGE, OBSERVATION
from sciflow_mri.model.prior import image_flow, train_prior
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
    heads = Heads(volumes, hold_out, licences, output)
    channels = numbers(widths)
    if device is not None:
        checked_device(device)
    flow, origin = (None, {}) if start is None else started(start, size, hold_out)
    heads.read(clip=clip)
    torch.manual_seed(seed)  # of the first weights
    training, validation = heads.images(size, images, validation_images, seed)
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
        **heads.record(),
        "minutes": round(fit.seconds / 60, 2), "steps": fit.steps, "epochs": len(fit.history), "best epoch": fit.best_epoch,
        "validation loss": fit.best_validation_loss, "images": images, "batch size": batch_size, "seed": seed,
        "learning rate": learning_rate, "precision": precision,
        "history": [[entry["loss"], entry["validation_loss"]] for entry in fit.history], **origin,
    }  # fmt: skip
    for name in (OBSERVATION, COVERAGE):  # of the older model that is replaced
        if (output / name / "config.json").is_file():
            remove(output / name)
    sciflow.save(trained.flow, output, readme=_readme(heads.own, hold_out, size), metadata=record, half=half)
    looked = _observation(trained.flow, heads.volumes(heads.own), size, output, seed)
    if coverage_scans:
        interval_coverage(trained.flow, heads.volumes(hold_out), size, output, scans=coverage_scans, seed=seed)
    loss = (
        "" if fit.best_validation_loss is None else f", validation loss {fit.best_validation_loss:.4g} on {', '.join(hold_out)}"
    )
    return f"{output}: {size} x {size}, {fit.steps} steps in {(time.monotonic() - began) / 60:.1f} min{loss}{looked}"


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
