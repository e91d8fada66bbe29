"""Which kind of output a file name asks for."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from sciflow.errors import UserError
from sciflow_physics.data.formats import Source, kind_of
from sciflow_physics.data.roles import Roles

__all__ = ["Mode", "mode_of", "sink_for"]

Mode = Literal["friend", "in-place", "copy"]


def mode_of(mode: Mode | None, source: Source, output: Path, chunk: tuple[int, int] | None) -> Mode:
    kinds = kind_of(source.path), kind_of(output)
    if mode is None:
        mode = "friend" if kinds == ("root", "root") else "copy"
    if mode in ("friend", "in-place") and kinds != ("root", "root"):
        raise UserError(f"{output}: --{mode} is from a .root file to a .root file, not from {source.path.name}; leave it out")
    if mode == "in-place" and chunk is not None:
        raise UserError("--in-place corrects the whole file; write friend trees with --chunk and merge them with hadd")
    if mode != "in-place" and output.exists() and output.samefile(source.path):
        raise UserError(
            f"{output}: is the input file; name another output" + (", or say --in-place" if kinds[0] == "root" else "")
        )
    return mode


def sink_for(mode: Mode, source: Source, beside: Path, output: Path, provenance: str, names: list[str], roles: Roles) -> Any:
    from sciflow_physics.writing import writers

    kind = kind_of(output)
    tree = getattr(source, "tree_name", "events")
    if mode == "in-place":
        return writers.BranchSink(beside, output, provenance, source=source.path, tree=tree)
    if kind == "root":
        counters = getattr(source, "counters", {})
        # new lists go by the counter of the collection that they belong to
        used = [counters[name] for name in names if name in counters] if mode == "copy" else []
        name = "corr" if mode == "friend" else tree
        return writers.RootSink(
            beside, output, provenance, tree=name, counters=counters, collection=used[0] if used else "n_corr"
        )
    if kind == "parquet":
        return writers.ParquetSink(beside, output, provenance)
    if kind == "hdf5":
        return writers.Hdf5Sink(
            beside, output, provenance, tree=getattr(source, "tree", "") if kind_of(source.path) == "hdf5" else "",
            compound=getattr(source, "compound", False),
        )  # fmt: skip
    return writers.CsvSink(beside, output, provenance)
