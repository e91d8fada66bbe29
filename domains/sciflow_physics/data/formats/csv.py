"""CSV: a header line, then one entry per line."""

from __future__ import annotations

import csv
import functools
import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Carrier, Columns, Source, broken

__all__ = ["CsvLines", "CsvSource"]


class CsvLines(Carrier):
    """Lines as they stand in the file, so that a copy is exact to the last digit."""

    def __init__(self, source: CsvSource, lines: list[bytes], first: int) -> None:
        self.source, self.lines, self.first = source, lines, first

    def columns(self) -> Columns:
        return self.source.parse(self.lines, self.source.names, self.first, self.source.kinds)


class CsvSource(Source):
    """Comma-separated columns; numbers are parsed to the nearest float64; blank lines are skipped.

    A field may be quoted but not hold a line break.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.label = path, str(path)
        try:
            with path.open("rb") as file:
                self.header = file.readline()
                self._body = file.tell()
                self.entries, last = 0, b""
                for line in file:
                    if line.strip():
                        self.entries, last = self.entries + 1, line
            self.names, fields = self._split(self.header), len(self._split(last))
        except (OSError, UnicodeDecodeError) as error:
            raise broken(path, "CSV", error) from error
        if len(set(self.names)) < len(self.names) or not all(self.names):
            raise UserError(f"{path}: the header names a column twice or not at all: {', '.join(self.names)[:200]}")
        self._check()
        if fields < len(self.names):
            raise UserError(f"{path}: truncated: the last row, {self.entries - 1}, has {fields} of {len(self.names)} fields")

    def chunks(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns]]:
        for first, lines in self.lines(start, stop, step):
            yield first, self.parse(lines, names, first)

    def carriers(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns, Carrier]]:
        for first, lines in self.lines(start, stop, step):
            yield first, self.parse(lines, names, first), CsvLines(self, lines, first)

    @functools.cached_property
    def kinds(self) -> dict[str, str]:
        """The type of every column over the whole file (one pass): "bool", "int64", "float64" or "str"."""
        seen: dict[str, set[str]] = {name: set() for name in self.names}
        for first, lines in self.lines(0, self.entries, 50_000):
            for name, column in self.parse(lines, self.names, first).items():
                seen[name].add(column.dtype.kind)
        types = {"b": "bool", "i": "int64", "f": "float64", "fi": "float64"}
        return {name: types.get("".join(sorted(kinds)), "str") for name, kinds in seen.items()}

    def lines(self, start: int, stop: int, step: int) -> Iterator[tuple[int, list[bytes]]]:
        """(first entry, the lines themselves) of consecutive slices."""
        with self.path.open("rb") as file:
            file.seek(self._body)
            held: list[bytes] = []
            entry = 0
            for line in file:
                if entry >= stop:
                    break
                if not line.strip():
                    continue
                if entry >= start:
                    held.append(line if line.endswith(b"\n") else line + b"\n")
                    if len(held) == step:
                        yield entry + 1 - len(held), held
                        held = []
                entry += 1
            if held:
                yield entry - len(held), held

    def parse(self, lines: list[bytes], names: Sequence[str], first: int, kinds: dict[str, str] | None = None) -> Columns:
        """Columns of some lines, of the given types or of those they look like."""
        import pandas as pd

        self._count_fields(lines, first)
        if not names:
            return {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", pd.errors.ParserWarning)  # a line with too many fields
                frame = pd.read_csv(
                    io.BytesIO(b"".join(lines)), header=None, names=self.names, usecols=list(names), low_memory=False,
                    index_col=False, na_values=[""], keep_default_na=False, skipinitialspace=True, **_exact(pd.__version__),
                    dtype=None if kinds is None else {name: kind for name, kind in kinds.items() if kind == "str"},
                )  # fmt: skip
        except (ValueError, UnicodeDecodeError, pd.errors.ParserWarning) as error:
            raise broken(self.path, "CSV", error) from error
        if len(frame) != len(lines):
            raise UserError(f"{self.path}: a field between rows {first} and {first + len(lines)} holds a line break")
        columns: Columns = {}
        for name in names:
            series = frame[name]
            if kinds is not None and kinds[name] == "str":
                columns[name] = np.array(series.fillna("").to_list(), dtype=str)
            else:
                kind = getattr(series.dtype, "kind", "O")
                column = series.to_numpy() if kind in "iufb" else _texts(series.to_list())
                columns[name] = column if kinds is None else column.astype(kinds[name])
        return columns

    def _count_fields(self, lines: list[bytes], first: int) -> None:
        """pandas fills short lines up and says nothing about long ones whose end is not used."""
        commas = len(self.names) - 1
        for row, line in enumerate(lines, first):
            if line.count(b",") != commas and (b'"' not in line or len(self._split(line)) != len(self.names)):
                raise UserError(
                    f"{self.path}: row {row} has {len(self._split(line))} of {len(self.names)} fields: {line[:60]!r}"
                )

    @staticmethod
    def _split(line: bytes) -> list[str]:
        return [
            field.strip() for field in next(csv.reader([line.decode("utf-8-sig").rstrip("\r\n")], skipinitialspace=True), [])
        ]


def _exact(version: str) -> dict[str, Any]:
    """Parse to the nearest float64: the default of pandas since 3.1, where the option is deprecated."""
    major, minor = (int(number) for number in version.split(".")[:2])
    return {} if (major, minor) >= (3, 1) else {"float_precision": "round_trip"}


def _texts(values: list) -> np.ndarray:
    """Text, unless it is numbers among words such as nan and inf."""
    words = [str(value) for value in values]
    try:
        return np.array([float(word) for word in words])
    except ValueError:
        return np.array(words, dtype=str)
