"""CSV output: the lines of a CSV input are kept as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciflow_physics.data.formats.base import Carrier, Columns
from sciflow_physics.data.formats.csv import CsvLines
from sciflow_physics.writing.writers.base import Sink

__all__ = ["CsvSink"]


class CsvSink(Sink):
    """One line per entry; floats with the digits that give the same float64 back."""

    def __init__(self, path: Path, output: Path, provenance: str) -> None:
        super().__init__(path, output, provenance)
        self.file: Any = path.open("wb")
        self.started = False

    def write(self, original: Carrier | None, new: Columns) -> None:
        self._flat(new, "CSV")
        fields = [_words(column) for column in new.values()]
        header, lines = b"", None
        if isinstance(original, CsvLines):
            header = original.source.header.rstrip(b"\r\n")
            lines = [line.rstrip(b"\r\n").decode() for line in original.lines]
        elif original is not None:
            columns = original.columns()
            self._flat(columns, "CSV")
            header = ",".join(columns).encode()
            fields = [_words(column) for column in columns.values()] + fields
        if not self.started:
            header = header + b"," if header else header
            self.file.write(header + ",".join(new).encode() + b"\n")
            self.started = True
        rows = zip(*fields, strict=True) if lines is None else zip(lines, *fields, strict=True)
        self.file.write("".join([",".join(row) + "\n" for row in rows]).encode())

    def finish(self) -> None:
        self.file.close()

    def abort(self) -> None:
        self.file.close()


def _words(column: Any) -> list[str]:
    if column.dtype.kind == "b":
        return ["1" if value else "0" for value in column.tolist()]
    if column.dtype.kind in "US":
        return [f'"{value.replace(chr(34), chr(34) * 2)}"' if set(value) & set(',"\n') else value for value in column.tolist()]
    # single precision: the shortest digits of float32, not those of its float64 image
    return (
        column.astype(str).tolist()
        if column.dtype.kind == "f" and column.dtype.itemsize < 8
        else list(map(repr, column.tolist()))
    )
