"""Parquet output: one row group per slice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sciflow_physics.data.formats.base import Carrier, Columns, is_jagged
from sciflow_physics.data.formats.parquet import ArrowTable
from sciflow_physics.writing.writers.base import Sink

__all__ = ["ParquetSink"]


class ParquetSink(Sink):
    """Keeps the arrow types and metadata of a parquet input; provenance is in the schema's metadata under `sciflow`."""

    def __init__(self, path: Path, output: Path, provenance: str) -> None:
        super().__init__(path, output, provenance)
        self.writer: Any = None

    def write(self, original: Carrier | None, new: Columns) -> None:
        import pyarrow as pa
        import pyarrow.parquet as pq

        if isinstance(original, ArrowTable):
            table = original.table
        else:
            table = pa.table({name: _arrow(column) for name, column in (original.columns() if original else {}).items()})
        metadata = table.schema.metadata or {}
        for name, column in new.items():
            table = table.append_column(name, _arrow(column))
        table = table.replace_schema_metadata({**metadata, b"sciflow": self.provenance.encode()})
        if self.writer is None:
            self.writer = pq.ParquetWriter(self.path, table.schema, compression="zstd")
        self.writer.write_table(table)

    def finish(self) -> None:
        self.writer.close()

    def abort(self) -> None:
        if self.writer is not None:
            self.writer.close()


def _arrow(column: Any) -> Any:
    import pyarrow as pa

    if not is_jagged(column):
        return pa.array(column)
    import awkward as ak

    return ak.to_arrow(ak.to_packed(column), extensionarray=False)
