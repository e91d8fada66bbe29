"""ROOT output: a new tree (friend or full copy), or branches added to a copy of the input's tree."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Carrier, Columns, is_jagged
from sciflow_physics.writing.writers.base import Sink

__all__ = ["BranchSink", "RootSink"]


class RootSink(Sink):
    """A tree of new columns, or of all; provenance is the `TObjString` named `sciflow` beside it.

    `counters` says which branch counts the objects of a jagged one: jagged branches that share a counter are written
    with this one counter; the others get a counter `n<branch>`. `collection` is the counter of jagged new columns.
    """

    def __init__(
        self,
        path: Path,
        output: Path,
        provenance: str,
        *,
        tree: str,
        counters: Mapping[str, str] | None = None,
        collection: str = "n_corr",
    ) -> None:
        import uproot

        super().__init__(path, output, provenance)
        self.file = uproot.recreate(path)
        self.name, self.counters, self.collection = tree, dict(counters or {}), collection
        self.tree: Any = None

    def write(self, original: Carrier | None, new: Columns) -> None:
        import awkward as ak

        columns = {**(original.columns() if original else {}), **new}
        counters = {**self.counters, **{name: self.collection for name in new}}
        groups: dict[str, Columns] = {}
        for name, column in columns.items():
            if is_jagged(column):
                groups.setdefault(f"@{counters.get(name, f'n{name}')}", {})[name] = column
        flat = {name: _flat(column) for name, column in columns.items() if not is_jagged(column) and f"@{name}" not in groups}
        # the key of a group, "@" and its counter, does not appear in the file
        block = {**flat, **{key: ak.zip(fields, depth_limit=2) for key, fields in groups.items()}}
        if self.tree is None:
            types = {
                name: column.dtype if isinstance(column, np.ndarray) else ak.type(column).content
                for name, column in block.items()
            }
            self.tree = self.file.mktree(self.name, types, counter_name=lambda key: key[1:], field_name=lambda _, field: field)
        self.tree.extend(block)

    def finish(self) -> None:
        self.file["sciflow"] = self.provenance
        self.file.close()

    def abort(self) -> None:
        self.file.close()


class BranchSink(Sink):
    """Branches added to a copy of the input file; its existing data are not touched. The new columns are held in memory."""

    def __init__(self, path: Path, output: Path, provenance: str, *, source: Path, tree: str) -> None:
        super().__init__(path, output, provenance)
        self.source, self.tree = source, tree
        self.parts: dict[str, list] = {}
        self._copy({"sciflow_probe": np.zeros(0)}, probe=True)

    def write(self, original: Carrier | None, new: Columns) -> None:
        jagged = [name for name, column in new.items() if is_jagged(column)]
        if jagged:
            raise UserError(f"{self.source}: branches of lists ({jagged[0]}) cannot be added in place; write a friend tree")
        for name, column in new.items():
            self.parts.setdefault(name, []).append(column)

    def finish(self) -> None:
        self._copy({name: np.concatenate(self.parts.pop(name)) for name in list(self.parts)}, probe=False)

    def abort(self) -> None:
        self.parts.clear()

    def _copy(self, branches: Columns, *, probe: bool) -> None:
        import uproot

        shutil.copyfile(self.source, self.path)
        try:
            with uproot.update(self.path) as file:
                tree = file[self.tree]
                # found out on a throw-away copy before hours of work, not after
                tree.add_branches({"sciflow_probe": np.zeros(tree.num_entries, np.int8)} if probe else branches)
                if not probe:
                    file["sciflow"] = self.provenance
        except (NotImplementedError, ValueError, TypeError, AttributeError) as error:
            reason = str(error).partition(";")[0].partition(":")[0][:160]
            raise UserError(
                f"{self.source}: uproot cannot add branches to the tree {self.tree!r} in place ({reason}); "
                "write a friend tree (--friend) or a copy (--copy)"
            ) from error


def _flat(column: Any) -> Any:
    if column.dtype.kind != "U":
        return column
    import awkward as ak

    return ak.Array(column.tolist()) if len(column) else ak.Array(["x"])[:0]
