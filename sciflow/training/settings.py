"""The numbers that say how a training goes, and those that say where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sciflow.errors import UserError

__all__ = ["PRECISIONS", "Counters", "Settings", "check_arguments"]

PRECISIONS = {None: None, "float32": torch.float32, "float64": torch.float64, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Settings:
    """How a training goes; see `fit`."""

    epochs: int
    batch_size: int
    clip: float | None = None
    patience: int | None = None
    seed: int = 0
    drop_last: bool = False
    folder: Path | None = None
    checkpoint_seconds: float | None = None
    checkpoint_epochs: int | None = None
    progress: bool = False
    callbacks: Sequence[Callable[[dict[str, Any]], Any]] = ()

    def batches(self, rows: int) -> int:
        """Steps of an epoch over that many rows.

        >>> Settings(1, 4).batches(9), Settings(1, 4, drop_last=True).batches(9), Settings(1, 16, drop_last=True).batches(9)
        (3, 2, 1)
        """
        whole, rest = divmod(rows, self.batch_size)
        return whole + (1 if rest and not (self.drop_last and whole) else 0)


@dataclass
class Counters:
    """Where a training is: plain numbers, written to checkpoints as they are."""

    epoch: int = 0  # epochs done
    batch: int = 0  # batches done of the present epoch
    step: int = 0
    loss_sum: float = 0.0  # weighted losses and weights of the present epoch
    weight_sum: float = 0.0
    stale: int = 0  # epochs since the best one
    best_epoch: int = 0
    best_merit: float = math.inf
    best_loss: float | None = None
    reason: str | None = None  # why the training ended
    history: list[dict[str, Any]] = field(default_factory=list)


def check_arguments(
    epochs: int, batch_size: int, learning_rate: float, weight_decay: float, clip: float | None, patience: int | None,
    precision: str | None, resume: bool, checkpoint: str | Path | None, warmup: int, checkpoint_epochs: int | None,
) -> None:  # fmt: skip
    """Refuse arguments of `fit` that no training can have, by name. Raises `UserError`."""
    every = 1 if checkpoint_epochs is None else checkpoint_epochs
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("checkpoint_epochs", every)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise UserError(f"{name}={value}: give a positive integer")
    if warmup < 0:
        raise UserError(f"warmup={warmup}: give a number of steps, 0 for none")
    if not learning_rate > 0 or weight_decay < 0 or (clip is not None and not clip > 0):
        raise UserError(
            f"learning_rate={learning_rate}, weight_decay={weight_decay}, clip={clip}: they may not be negative or zero"
        )
    if patience is not None and patience < 1:
        raise UserError(f"patience={patience}: give a positive number of epochs, or None")
    if precision not in PRECISIONS:
        raise UserError(f"precision={precision!r} is unknown: choose {', '.join(repr(p) for p in PRECISIONS)}")
    if resume and checkpoint is None:
        raise UserError("resume=True needs the folder of the checkpoint: give checkpoint=")
