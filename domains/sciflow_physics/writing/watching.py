"""A progress bar in entries of a file, for whoever watches a terminal."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

__all__ = ["entries_bar"]


@contextmanager
def entries_bar(total: int, visible: bool) -> Iterator[Callable[[int], None]]:
    """Progress in entries on a terminal, from two seconds on."""
    if not (visible and sys.stderr.isatty()):
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn("correcting"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} entries"),
        TimeRemainingColumn(),
    )
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    task = bar.add_task("correcting", total=total)
    begun = time.monotonic()

    def advance(count: int) -> None:
        bar.advance(task, count)
        if not bar.live.is_started and time.monotonic() - begun > 2.0:
            bar.start()

    try:
        yield advance
    finally:
        bar.stop()
