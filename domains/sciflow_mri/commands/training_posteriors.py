"""What `train --kind null-space` and `--kind amortised` do: a learned posterior from heads of several people."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.files import remove
from sciflow_mri.commands.people import Heads, numbers, started
from sciflow_mri.commands.priors import COVERAGE, OBSERVATION
from sciflow_mri.model.amortised import amortised_flow, amortised_from_prior, train_amortised
from sciflow_mri.model.null_space.training import train_null_space
from sciflow_mri.posterior.coverage import calibrate_coverage
from sciflow_mri.posterior.reconstruction import checked_device
from sciflow_mri.posterior.simulations import simulated_acquisitions
from sciflow_mri.posterior.spread import choose_spread

__all__ = ["train_posterior"]

_DRAWS = 32  # of each scan, for the coverage of intervals
_SPREAD_SCANS = 8  # of each person who is trained on, for the spread of the consistency step


class _Settings(NamedTuple):
    """What each kind has defaults of its own for."""

    widths: str
    blocks: int
    learning_rate: float
    batch_size: int


_OWN = {"null-space": _Settings("48,96,128", 1, 8e-4, 8), "amortised": _Settings("64,128,192", 2, 7e-4, 16)}


class _Lines(NamedTuple):
    """Of the masks of a null-space flow."""

    acceleration: float
    calibration: int
    coupling: str


def train_posterior(
    kind: str, volumes: tuple[Path, ...], output: Path, *, hold_out: tuple[str, ...], size: int, images: int,
    validation_images: int, epochs: int, minutes: float | None, batch_size: int | None, learning_rate: float | None,
    widths: str | None, blocks: int | None, patch: int, precision: str, half: bool, clip: bool, coverage_scans: int,
    licences: tuple[str, ...], checkpoint: Path | None, device: str | None, seed: int, acceleration: float, calibration: int,
    coupling: str, start: Path | None,
) -> str:  # fmt: skip
    """Train, choose what remains to be chosen on the people trained on, save, measure coverage on those held out; one line."""
    heads = Heads(volumes, hold_out, licences, output)
    lines = _Lines(acceleration, calibration, coupling)
    _refuse_lines(kind, size, lines, start)
    given = {"widths": widths, "blocks": blocks, "learning_rate": learning_rate, "batch_size": batch_size}
    chosen = _OWN[kind]._replace(**{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]
    channels = numbers(chosen.widths)
    if device is not None:
        checked_device(device)
    prior, origin = (None, {}) if start is None else started(start, size, hold_out)
    heads.read(clip=clip)
    torch.manual_seed(seed)  # of the first weights
    training, validation = heads.images(size, images, validation_images, seed)
    began = time.monotonic()
    shared: dict[str, Any] = {
        "epochs": epochs, "batch_size": chosen.batch_size, "learning_rate": chosen.learning_rate, "seed": seed,
        "precision": "bf16" if precision == "bf16" else None, "device": device, "checkpoint": checkpoint,
        "resume": checkpoint is not None, "warmup": min(300, max(epochs * images // chosen.batch_size // 10, 1)),
        "callbacks": [] if minutes is None else [lambda record: record["seconds"] >= 60 * minutes],
    }  # fmt: skip
    noted: dict[str, Any] = {}
    if kind == "null-space":
        network = {"widths": channels, "blocks": chosen.blocks, "patch": min(patch, 2)}
        flow, fit, noted = _null_space((training, validation), lines, network, heads.volumes(heads.own), shared)
    else:
        flow, fit = _amortised((training, validation), prior, channels, chosen.blocks, patch, shared)
    record = {
        "kind": kind, **heads.record(),
        "minutes": round(fit.seconds / 60, 2), "steps": fit.steps, "epochs": len(fit.history), "best epoch": fit.best_epoch,
        "validation loss": fit.best_validation_loss, "images": images, "batch size": chosen.batch_size, "seed": seed,
        "learning rate": chosen.learning_rate, "precision": precision, **noted,
        "history": [[entry["loss"], entry["validation_loss"]] for entry in fit.history], **origin,
    }  # fmt: skip
    for name in (OBSERVATION, COVERAGE):  # of the older model that is replaced
        if (output / name / "config.json").is_file():
            remove(output / name)
    sciflow.save(flow, output, readme=_readme(kind, heads.own, hold_out, size), metadata=record, half=half)
    if coverage_scans:
        scans = _scans(lines) if kind == "null-space" else {}
        unseen = {
            name: simulated_acquisitions(volume, coverage_scans, size, seed=seed + 3, spacing=spacing, **scans)
            for name, (volume, spacing) in heads.volumes(hold_out).items()
        }
        measured = calibrate_coverage(flow, unseen, draws=_DRAWS, seed=seed)
        words = "How often intervals hold the truth, on simulated scans of people held out."
        sciflow.save(measured, output / COVERAGE, readme=words, metadata=measured.to_dict())
    loss = f", validation loss {fit.best_validation_loss:.4g} on {', '.join(hold_out)}"
    return f"{output}: {kind}, {size} x {size}, {fit.steps} steps in {(time.monotonic() - began) / 60:.1f} min{loss}"


def _null_space(
    images: tuple[Tensor, Tensor], lines: _Lines, network: dict[str, Any], people: dict[str, Any], shared: dict[str, Any]
) -> tuple[Any, Any, dict[str, Any]]:
    found = train_null_space(
        *images, acceleration=lines.acceleration, calibration=lines.calibration, coupling=lines.coupling, network=network,
        **shared,
    )  # fmt: skip
    size, seed = images[0].shape[-1], shared["seed"]
    simulated = [
        scan
        for volume, spacing in people.values()
        for scan in simulated_acquisitions(volume, _SPREAD_SCANS, size, seed=seed + 2, spacing=spacing, **_scans(lines))
    ]
    best = choose_spread(found.flow, simulated, seed=seed)
    noted = {
        "acceleration": lines.acceleration, "calibration lines": lines.calibration, "coupling": lines.coupling,
        "noise of the density": found.flow.noise, "spread": str(best.spread),
        "scores of the spreads": {str(r): score for r, score in zip(best.spreads, best.scores, strict=True)},
    }  # fmt: skip
    return found.flow, found.fit, noted


def _amortised(
    images: tuple[Tensor, Tensor], prior: Any, widths: tuple[int, ...], blocks: int, patch: int, shared: dict[str, Any]
) -> tuple[Any, Any]:
    if prior is not None:
        flow = amortised_from_prior(prior)
    else:
        scale = round(float(images[0].std()), 3)
        flow = amortised_flow(images[0].shape[-1], widths=widths, blocks=blocks, patch=patch, data_scale=scale)
    found = train_amortised(*images, flow=flow, **shared)
    return found.flow, found.fit


def _scans(lines: _Lines) -> dict[str, Any]:
    return {"accelerations": (lines.acceleration, lines.acceleration), "calibration": lines.calibration}


def _refuse_lines(kind: str, size: int, lines: _Lines, start: Path | None) -> None:
    if start is not None and kind != "amortised":
        raise UserError(f"--start {start}: only amortised flows start from a prior; leave it out for --kind {kind}")
    measured = round(size / lines.acceleration)
    if kind == "null-space" and not lines.calibration <= measured < size:
        raise UserError(
            f"--acceleration {lines.acceleration:g} measures {measured} of {size} lines: it must be fewer than all, and at "
            f"least the {lines.calibration} of --calibration-lines"
        )


def _readme(kind: str, own: list[str], held: tuple[str, ...], size: int) -> str:
    what = {
        "null-space": "A conditional normalising flow over the lines that a mask does not measure, with exact log-density",
        "amortised": "A flow over images given what a scan says of them, for any mask of lines",
    }[kind]
    return (
        f"{what}, {size} x {size}. Trained on simulated scans of oblique slices of the magnitude images of {', '.join(own)} "
        f"with random contrast, bias field, phase, coils and noise; validated on {', '.join(held)}, of whom no training image "
        "was made. Few people: a demonstration of the method, not for clinical use. Loss histories are in config.json."
    )
