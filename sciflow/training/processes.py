"""How many processes train together, and what they tell each other."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as distributed
from torch import Tensor

__all__ = ["any_process", "gather", "gather_objects", "process_count", "process_rank", "sum_over_processes"]


def process_count() -> int:
    """Number of processes that train together; 1 without a process group."""
    return distributed.get_world_size() if _running() else 1


def process_rank() -> int:
    """The number of this process; 0 without a process group."""
    return distributed.get_rank() if _running() else 0


def sum_over_processes(value: Tensor) -> Tensor:
    """The sum of a detached tensor over all processes, the same on each; the tensor itself if there is one process.

    >>> sum_over_processes(torch.tensor([1.0, 2.0]))
    tensor([1., 2.])
    """
    if process_count() == 1:
        return value
    total = value.detach().clone()
    distributed.all_reduce(total)
    return total


def gather_objects(value: Any) -> list[Any]:
    """One entry per process, on each; for what happens rarely."""
    if process_count() == 1:
        return [value]
    found: list[Any] = [None] * process_count()
    distributed.all_gather_object(found, value)
    return found


def gather(value: Tensor) -> Tensor:
    """The vectors of all processes, of any lengths, one behind the other, on the CPU."""
    return torch.cat(gather_objects(value.detach().cpu()))


def any_process(value: bool) -> bool:
    """Whether it is true in any process."""
    return any(gather_objects(value))


def _running() -> bool:
    return distributed.is_available() and distributed.is_initialized()
