"""A progress bar that is silent when nobody watches."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any

from sciflow.training.processes import process_rank

__all__ = ["ProgressBar"]


class ProgressBar:
    """Epoch, loss, validation loss, learning rate and remaining time; only on a terminal and on process 0.

    >>> with ProgressBar(10, visible=False) as bar:
    ...     bar.update(1, "epoch 1/1")
    """

    def __init__(self, steps: int, *, done: int = 0, visible: bool = True) -> None:
        self._bar: Any = None
        if not (visible and process_rank() == 0 and sys.stderr.isatty()):
            return
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
            refresh_per_second=4,
        )
        self._task = self._bar.add_task("training", total=steps, completed=done)

    @property
    def visible(self) -> bool:
        """Whether anybody can see it: text need not be formatted otherwise."""
        return self._bar is not None

    def update(self, completed: int, text: str) -> None:
        """Set the number of steps done and the text."""
        if self._bar is not None:
            self._bar.update(self._task, completed=completed, description=text)

    def __enter__(self) -> ProgressBar:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None) -> None:
        if self._bar is not None:
            self._bar.stop()
