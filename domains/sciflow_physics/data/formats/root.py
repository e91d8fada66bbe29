"""ROOT TTrees (and RNTuples) through uproot and awkward."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sciflow.errors import UserError
from sciflow_physics.data.formats.base import Columns, Source, broken, strings

__all__ = ["RootSource"]

_KINDS = ("TTree", "ROOT::RNTuple", "TNtuple", "TNtupleD")


class RootSource(Source):
    """A tree of a ROOT file; without `tree` the only one."""

    def __init__(self, path: Path, tree: str | None) -> None:
        import uproot

        self.path = path
        try:
            self.file = uproot.open(path)
            classes = self.file.classnames(cycle=False)
        except Exception as error:  # uproot raises struct.error, ValueError, KeyError, OSError, ... on damaged files
            raise broken(path, "ROOT", error) from error
        trees = [name for name, kind in classes.items() if kind in _KINDS]
        if not trees:
            raise UserError(
                f"{path}: has no TTree; it has {', '.join(f'{n} ({k})' for n, k in classes.items())[:200] or 'nothing'}"
            )
        if tree is None and len(trees) > 1:
            raise UserError(f"{path}: which tree? name one with tree = ...; the file has {', '.join(trees)}")
        wanted = trees[0] if tree is None else tree.partition(";")[0].strip("/")
        if wanted not in trees:
            raise UserError(f"{path}: no tree {tree!r}; the file has {', '.join(trees)}")
        self.tree_name, self.label = wanted, f"{path}:{wanted}"
        try:
            self.tree: Any = self.file[wanted]
            self.names = list(self.tree.keys(recursive=False))
            self.entries = int(self.tree.num_entries)
            # jagged branch -> the branch that counts its objects, where the file has one
            counts = {name: getattr(self.tree[name], "count_branch", None) for name in self.names}
            self.counters = {name: branch.name for name, branch in counts.items() if branch is not None}
        except Exception as error:
            raise broken(path, "ROOT", error) from error
        self._check()

    def chunks(self, names: Sequence[str], start: int, stop: int, step: int) -> Iterator[tuple[int, Columns]]:
        if not names:
            yield from ((first, {}) for first in range(start, stop, step))
            return
        blocks = self.tree.iterate(list(names), entry_start=start, entry_stop=stop, step_size=step, library="ak", how=dict)
        first = start
        while first < stop:
            # only reading is guarded: what the consumer of this generator raises is not the file's fault
            try:
                block = next(blocks)
                columns = {name: self._column(name, block[name]) for name in names}
            except UserError:
                raise
            except Exception as error:  # a damaged basket surfaces as almost anything
                raise broken(self.path, "ROOT", error) from error
            yield first, columns
            first += len(block[names[0]])

    def close(self) -> None:
        self.file.close()

    def _column(self, name: str, values: Any) -> Any:
        import awkward as ak

        if ak.parameters(values).get("__array__") in ("string", "bytestring"):
            return strings(ak.to_list(values))
        if values.ndim == 1 and not ak.fields(values):
            flat = ak.to_numpy(values)
            return flat.astype(flat.dtype.newbyteorder("="), copy=False)
        if values.ndim == 2 and not ak.fields(values):
            return ak.from_regular(values, axis=1) if isinstance(values.layout, ak.contents.RegularArray) else values
        raise UserError(
            f"{self.label}: branch {name!r} is {ak.type(values)}; numbers, strings and lists of numbers are understood"
        )
