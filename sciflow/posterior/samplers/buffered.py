"""Random numbers for many small steps, made in blocks: a call of the generator costs more than a small move."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.posterior.randomness import Randomness

__all__ = ["Buffered"]

_MOST, _BLOCK = 2**18, 64


class Buffered(Randomness):
    """A source as `Randomness`, whose numbers come from blocks of up to 64 steps of one kind and size.

    They still depend on (seed, name, kind, size, how many were taken before, row) alone.

    >>> source = Buffered(Randomness(0, "doctest"))
    >>> first, second = source.uniform(4, 2), source.uniform(4, 2)
    >>> bool((first != second).all()), first.shape
    (True, torch.Size([4, 2]))
    """

    def __init__(self, inner: Randomness) -> None:
        super().__init__(inner.seed, inner.name, start=inner.start, device=inner.device, dtype=inner.dtype)
        self._sources: dict[str, Randomness] = {}
        self._blocks: dict[str, tuple[Tensor, int]] = {}

    def uniform(self, rows: int, count: int) -> Tensor:
        return self._next("uniform", rows, count)

    def normal(self, rows: int, shape: Sequence[int] = (), dtype: torch.dtype | None = None) -> Tensor:
        values = self._next("normal", rows, math.prod(shape)).reshape(rows, *shape)
        return values.to(self.dtype if dtype is None else dtype)

    def _next(self, kind: str, rows: int, count: int) -> Tensor:
        key = f"{kind}-{rows}-{count}"
        block, used = self._blocks.get(key, (None, 0))
        if block is None or used == block.shape[1]:
            source = self._sources.setdefault(key, Randomness(self.seed, f"{self.name}/{key}", start=self.start,
                                                              device=self.device, dtype=torch.float64))  # fmt: skip
            length = max(1, min(_BLOCK, _MOST // max(rows * count, 1)))
            if kind == "uniform":
                block = source.uniform(rows, length * count).reshape(rows, length, count)
            else:
                block = source.normal(rows, (length, count), torch.float64)
            used = 0
        self._blocks[key] = (block, used + 1)
        return block[:, used]
