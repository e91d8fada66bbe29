"""Parquet through pyarrow: flat columns of numbers and strings, and lists of numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Carrier, Columns, Source, broken, strings

__all__ = ["ArrowTable", "ParquetSource"]


class ArrowTable(Carrier):
    """An arrow table, so that a copy keeps types and metadata."""

    def __init__(self, source: ParquetSource, table: Any) -> None:
        self.source, self.table = source, table

    def columns(self) -> Columns:
        return self.source.columns_of(self.table, self.source.names)


class ParquetSource(Source):
    """A parquet file, read by record batches; missing values become NaN."""

    def __init__(self, path: Path) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.path, self.label = path, str(path)
        try:
            self.file = pq.ParquetFile(path)
            self.schema = self.file.schema_arrow
        except (OSError, pa.ArrowException) as error:
            raise broken(path, "parquet", error) from error
        self.names = list(self.schema.names)
        self.entries = self.file.metadata.num_rows
        self._check()

    def batches(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Any]]:
        """(first entry, arrow table) of consecutive slices."""
        import pyarrow as pa

        groups, offset, held, first = [], 0, [], None
        for group in range(self.file.metadata.num_row_groups):
            rows = self.file.metadata.row_group(group).num_rows
            if offset + rows > start and offset < stop:
                groups.append(group)
                first = offset if first is None else first
            offset += rows
        position, count, begin = first or 0, 0, start
        try:
            for batch in self.file.iter_batches(batch_size=step, row_groups=groups, columns=list(names), use_threads=False):
                low, high = max(start - position, 0), min(stop - position, batch.num_rows)
                position += batch.num_rows
                while low < high:
                    take = min(high - low, step - count)
                    held.append(batch.slice(low, take))
                    low, count = low + take, count + take
                    if count == step:
                        yield begin, pa.Table.from_batches(held)
                        begin, held, count = begin + count, [], 0
        except (OSError, pa.ArrowException) as error:
            raise broken(self.path, "parquet", error) from error
        if held:
            yield begin, pa.Table.from_batches(held)

    def chunks(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns]]:
        if not names:
            yield from ((first, {}) for first in range(start, stop, step))
            return
        for first, table in self.batches(names, start, stop, step):
            yield first, self.columns_of(table, names)

    def carriers(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns, Carrier]]:
        for first, table in self.batches(self.names, start, stop, step):
            yield first, self.columns_of(table, names), ArrowTable(self, table)

    def columns_of(self, table: Any, names: Sequence[str]) -> Columns:
        return {name: self._column(name, table.column(name)) for name in names}

    def close(self) -> None:
        self.file.close()

    def _column(self, name: str, column: Any) -> Any:
        import pyarrow as pa

        kind = column.type
        if pa.types.is_dictionary(kind):
            column, kind = column.cast(kind.value_type), kind.value_type
        if pa.types.is_list(kind) or pa.types.is_large_list(kind):
            import awkward as ak

            return ak.fill_none(ak.drop_none(ak.from_arrow(column), axis=0), np.nan, axis=-1)
        if pa.types.is_string(kind) or pa.types.is_large_string(kind):
            return strings(column.to_pylist())
        if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind):
            return column.to_numpy()
        raise UserError(f"{self.path}: column {name!r} is {kind}; numbers, strings and lists of numbers are understood")
