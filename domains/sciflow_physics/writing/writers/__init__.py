"""Where corrected columns go: ROOT friend trees, added branches, ROOT, parquet, HDF5 and CSV copies."""

from __future__ import annotations

from sciflow_physics.writing.writers.base import Sink
from sciflow_physics.writing.writers.csv import CsvSink
from sciflow_physics.writing.writers.hdf5 import Hdf5Sink
from sciflow_physics.writing.writers.parquet import ParquetSink
from sciflow_physics.writing.writers.root import BranchSink, RootSink

__all__ = ["BranchSink", "CsvSink", "Hdf5Sink", "ParquetSink", "RootSink", "Sink"]
