"""What a training hands back, and how it fails."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from sciflow.errors import UserError

__all__ = ["FitResult", "TrainingDiverged"]


class TrainingDiverged(UserError):
    """The loss or the weights became NaN or infinite; the flow has its best weights (or those at the start).

    Attributes `step`, `epoch`, `learning_rate`, `rows` (row numbers in the data, all that are concerned) and
    `checkpoint` (path of the last good one, or None) repeat what the message says.
    """

    def __init__(
        self, problem: str, *, step: int, epoch: int, learning_rate: float, rows: list[int], checkpoint: str | None = None
    ) -> None:
        self.step, self.epoch, self.learning_rate, self.rows, self.checkpoint = step, epoch, learning_rate, rows, checkpoint
        shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
        last = f"the last good checkpoint is {checkpoint}" if checkpoint else "there is no checkpoint"
        super().__init__(
            f"{problem} at step {step} (epoch {epoch}, learning rate {learning_rate:.3g}, {len(rows)} rows: {shown}); "
            f"{last}; look at those rows, lower the learning rate or set clip"
        )


@dataclass(frozen=True)
class FitResult:
    """The record of a training.

    Attributes:
        history: one dict per epoch: epoch (from 1), step, loss, validation_loss, learning_rate, seconds, and what
            the objective reports.
        best_epoch: the epoch whose weights the flow has now.
        best_validation_loss: its loss on the validation set; None without one.
        seconds: wall time, over all resumed parts.
        steps: optimiser steps.
        reason: why it ended: "all epochs done", "early stopping", "callback".
    """

    history: list[dict[str, Any]] = field(repr=False)
    best_epoch: int
    best_validation_loss: float | None
    seconds: float
    steps: int
    reason: str

    def __repr__(self) -> str:
        best = f"epoch {self.best_epoch}"
        if self.best_validation_loss is not None:
            best += f", validation loss {self.best_validation_loss:.5g}"
        speed = f"{self.steps} steps in {self.seconds:.1f} s"
        return f"FitResult({len(self.history)} epochs, {speed}; weights of {best}; ended by: {self.reason})"
