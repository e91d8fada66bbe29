"""The contract of a file format: named columns of one common length, read in slices."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError

__all__ = ["Carrier", "Columns", "Source", "broken", "is_jagged", "strings"]

# column name -> numpy array of one axis, or a jagged awkward array with one list per entry
Columns = dict[str, Any]


class Carrier:
    """All columns of a slice of a file, on their way to another file; formats keep their own form where they can."""

    def __init__(self, columns: Columns) -> None:
        self._columns = columns

    def columns(self) -> Columns:
        """The columns by name; their types are the same in every slice of a file."""
        return self._columns


class Source(ABC):
    """An open file. `names`: its columns in order; `entries`: their length; `label`: the file (and tree) for messages.

    A context manager; opening raises `UserError` with the file's name if it is missing, empty, foreign or truncated.
    """

    path: Path
    label: str
    names: list[str]
    entries: int

    @abstractmethod
    def chunks(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns]]:
        """(first entry, columns) for consecutive slices of at most `step` entries of [start, stop)."""

    def carriers(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns, Carrier]]:
        """Like `chunks`, together with everything else that the file has."""
        for first, columns in self.chunks(self.names, start, stop, step):
            yield first, {name: columns[name] for name in names}, Carrier(columns)

    def close(self) -> None:  # noqa: B027 - most have nothing to release
        """Release the file."""

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _check(self) -> None:
        if self.entries == 0:
            raise UserError(f"{self.label}: has no entries (0 rows)")


def is_jagged(column: Any) -> bool:
    """Whether a column holds a list per entry."""
    return not isinstance(column, np.ndarray)


def strings(values: Sequence[Any]) -> NDArray:
    """Text (str or bytes) as a numpy array of str."""
    return np.array([value.decode() if isinstance(value, bytes) else str(value) for value in values], dtype=str)


def broken(path: Path, kind: str, error: BaseException) -> UserError:
    """The one-line complaint about a file that is not what its name says."""
    reason = re.sub(r"\s+", " ", str(error)).strip() or type(error).__name__
    return UserError(f"{path}: not a readable {kind} file, truncated or damaged: {reason[:160]}")
