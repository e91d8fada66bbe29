"""The numbers that say how a training goes, and those that say where it is."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["Counters", "Settings"]


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
