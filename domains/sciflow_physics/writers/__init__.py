"""Where corrected columns go: ROOT friend trees, added branches, ROOT, parquet, HDF5 and CSV copies."""

from __future__ import annotations

from sciflow_physics.writers.base import Sink
from sciflow_physics.writers.csv import CsvSink
from sciflow_physics.writers.hdf5 import Hdf5Sink
from sciflow_physics.writers.parquet import ParquetSink
from sciflow_physics.writers.root import BranchSink, RootSink

__all__ = ["BranchSink", "CsvSink", "Hdf5Sink", "ParquetSink", "RootSink", "Sink"]
