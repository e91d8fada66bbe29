"""The contract of an output file that grows slice by slice."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Carrier, Columns, is_jagged

__all__ = ["Sink"]


class Sink(ABC):
    """Writes slices in order to `path`, a temporary name; whoever made it renames the file once `finish` has returned.

    `output` is the final name, for messages; `provenance` is JSON kept with the file where the format has a place for it.
    """

    def __init__(self, path: Path, output: Path, provenance: str) -> None:
        self.path, self.output, self.provenance = path, output, provenance

    @abstractmethod
    def write(self, original: Carrier | None, new: Columns) -> None:
        """Append the original columns of a slice (None if only the new ones are wanted) and its new columns."""

    @abstractmethod
    def finish(self) -> None:
        """Everything is written: complete the file."""

    @abstractmethod
    def abort(self) -> None:
        """Release the file without completing it."""

    def _flat(self, columns: Columns, kind: str) -> None:
        jagged = [name for name, column in columns.items() if is_jagged(column)]
        if jagged:
            raise UserError(
                f"{self.output}: {kind} cannot hold lists per event ({', '.join(jagged[:5])}); write ROOT or parquet"
            )
