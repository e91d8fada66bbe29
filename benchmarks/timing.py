"""Interleaved timings on a shared machine, peak memory, and the machine's name for the tables."""

from __future__ import annotations

import datetime
import gc
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

__all__ = ["interleaved", "machine", "median_ratio", "peak_memory", "report"]

Run = Callable[[], object]


def interleaved(
    runs: Mapping[str, Run], repeats: int, *, clock: Callable[[], float] = time.process_time, warm: int = 3
) -> dict[str, list[float]]:
    """Seconds of every call; each round calls every run once, starting with another one each time.

    Processor time does not count while other processes run, and what still differs between rounds (clock rate, caches)
    meets all runs of a round alike: compare within rounds (`median_ratio`).
    """
    names = list(runs)
    for name in names:
        for _ in range(warm):
            runs[name]()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    gc.collect()
    gc.disable()
    try:
        for number in range(repeats):
            first = number % len(names)
            for name in names[first:] + names[:first]:
                start = clock()
                runs[name]()
                seconds[name].append(clock() - start)
    finally:
        gc.enable()
    return seconds


def median_ratio(slower: list[float], faster: list[float]) -> float:
    """The median over rounds of slower / faster."""
    return statistics.median(a / b for a, b in zip(slower, faster, strict=True))


def peak_memory(run: Run) -> float:
    """Peak of the tensor memory that the second call of `run` allocates, in MiB.

    Adds up every allocation and release of torch's CPU allocator in the order the profiler recorded them; what existed
    before the call (weights, inputs) does not count.
    """
    run()
    gc.collect()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as record:
        run()
    level = peak = 0
    events = [event for event in record.profiler.kineto_results.events() if event.name() == "[memory]"]
    for event in sorted(events, key=lambda event: event.start_ns()):
        level += event.nbytes()
        peak = max(peak, level)
    return peak / 2**20


def machine() -> str:
    """Date, processor, torch."""
    cpu = platform.processor() or platform.machine()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        pass
    return f"{datetime.date.today().isoformat()}, {cpu}, Python {platform.python_version()}, torch {torch.__version__}"


def report(text: str, path: Path) -> None:
    """Writes the table beside its script and shows it."""
    path.write_text(text)
    sys.stdout.write(text)
