"""Learning rates as functions of the step, so that a resumed training needs to remember almost nothing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from sciflow.errors import UserError

__all__ = ["SCHEDULES", "Schedule"]


def _constant(fraction: float) -> float:
    return 1.0


def _cosine(fraction: float) -> float:
    return 0.5 * (1 + math.cos(math.pi * fraction))


def _onecycle(fraction: float) -> float:
    """From 1/25 up to 1 over the first 30 %, then down to 1e-5, both along half a cosine."""
    low, high, last, turn = 1 / 25, 1.0, 1e-5, 0.3
    if fraction < turn:
        return high + (low - high) * _cosine(fraction / turn)
    return last + (high - last) * _cosine((fraction - turn) / (1 - turn))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": _constant,
    "cosine": _cosine,
    "onecycle": _onecycle,
    "plateau": _constant,
}


class Schedule:
    r"""The learning rate of step s of S: peak * min(1, (s + 1) / warmup) * shape(s / S).

    Arguments:
        peak: the largest learning rate.
        shape: "constant", "cosine" (to zero), "onecycle" (Smith and Topin, Super-convergence, 2017, arXiv 1708.07120),
            "plateau" (halved when the validation loss has not fallen for `patience` epochs), or a function of the
            fraction of training done, in [0, 1).
        steps: the number of steps of the whole training.
        warmup: steps of linear rise at the start.

    >>> [round(Schedule(0.1, "cosine", 4).rate(step), 4) for step in range(4)]
    [0.1, 0.0854, 0.05, 0.0146]
    """

    def __init__(
        self, peak: float, shape: str | Callable[[float], float], steps: int, *, warmup: int = 0, patience: int = 5
    ) -> None:
        if isinstance(shape, str) and shape not in SCHEDULES:
            raise UserError(f"schedule={shape!r} is unknown: choose {', '.join(sorted(SCHEDULES))} or give a function")
        self.peak, self.steps, self.warmup, self.patience = peak, max(steps, 1), warmup, patience
        self.shape = SCHEDULES[shape] if isinstance(shape, str) else shape
        self.on_plateau = shape == "plateau"
        self.factor, self.best, self.stale = 1.0, math.inf, 0

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return self.peak * rise * self.factor * self.shape(min(step / self.steps, 1.0))

    def after_epoch(self, loss: float) -> None:
        """Tell the plateau rule the loss of an epoch."""
        if not self.on_plateau:
            return
        self.best, self.stale = (loss, 0) if loss < self.best else (self.best, self.stale + 1)
        if self.stale > self.patience:
            self.factor, self.stale = self.factor / 2, 0

    def state(self) -> dict[str, Any]:
        """What the plateau rule remembers, as JSON."""
        return {"factor": self.factor, "best": self.best, "stale": self.stale}

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.factor, self.best, self.stale = state["factor"], state["best"], state["stale"]
