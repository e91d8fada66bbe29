"""Tensors in memory that another process maps too; it has no name, so that none can be left behind."""

from __future__ import annotations

import mmap
import os
import tempfile
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.training.data import map_tensors

__all__ = ["Place", "map_places", "places", "reserve"]

_ALIGNMENT = 64


class Place(NamedTuple):
    """Where a tensor lies."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int


def places(like: Any) -> tuple[Any, int]:
    """One place for each tensor of a nested dict, and how many bytes they take together.

    >>> places({"a": torch.zeros(3), "b": None, "c": {"d": torch.zeros(2, dtype=torch.int64)}})[1]
    128
    """
    end = 0

    def place(leaf: Tensor) -> Place:
        nonlocal end
        found = Place(leaf.dtype, tuple(leaf.shape), end)
        end += -(-leaf.numel() * leaf.element_size() // _ALIGNMENT) * _ALIGNMENT
        return found

    return map_tensors(place, like), max(end, _ALIGNMENT)


def reserve(size: int) -> int:
    """A file descriptor of so many bytes of memory, zeros; they are freed when no process has it open or mapped.

    Raises `OSError` if there is not so much memory, rather than when it is written to.
    """
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("sciflow-coupling")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    try:
        os.ftruncate(descriptor, size)
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(descriptor, 0, size)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def map_places(found: Any, size: int, descriptor: int) -> Any:
    """The tensors at the places in that memory, which they keep; -1 for memory of this process alone."""
    memory = mmap.mmap(descriptor, size)

    def tensor(place: Place) -> Tensor:
        count = torch.Size(place.shape).numel()
        if count == 0:
            return torch.empty(place.shape, dtype=place.dtype)
        return torch.frombuffer(memory, dtype=place.dtype, count=count, offset=place.offset).view(place.shape)

    return map_tensors(tensor, found)
