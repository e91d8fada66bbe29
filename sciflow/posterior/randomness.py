"""Random numbers for samplers: addressed by (seed, name, step, row), so that a chain does not depend on its neighbours."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.noise import normal, uniform

__all__ = ["Randomness"]


class Randomness:
    """A source of random numbers that counts its own steps: each call is a new step, rows are numbered from `start`.

    The number of row i in step k depends on (seed, name, k, start + i) alone: chains may be cut into chunks, particles spread
    over processes. No host is asked for anything; the values are made on `device`.

    >>> randomness = Randomness(0, "doctest")
    >>> first, second = randomness.normal(4, (2,)), randomness.normal(4, (2,))
    >>> bool((first != second).all()), bool((Randomness(0, "doctest", start=2).normal(2, (2,)) == first[2:]).all())
    (True, True)
    """

    def __init__(
        self, seed: int, name: str, *, start: int = 0, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:  # fmt: skip
        self.seed, self.name, self.start, self.device = seed, name, start, device
        self.dtype = torch.get_default_dtype() if dtype is None else dtype
        self.step = 0

    def uniform(self, rows: int, count: int) -> Tensor:
        """Uniforms in (0, 1): float64 (rows, count)."""
        return uniform(self.seed, self._stream(), self._rows(rows), count, device=self.device)

    def normal(self, rows: int, shape: Sequence[int] = (), dtype: torch.dtype | None = None) -> Tensor:
        """Standard normals (rows, *shape)."""
        values = normal(self.seed, self._stream(), self._rows(rows), math.prod(shape), device=self.device)
        return values.reshape(rows, *shape).to(self.dtype if dtype is None else dtype)

    def child(self, name: str) -> Randomness:
        """An independent source, which depends on the name and not on what was drawn before."""
        return Randomness(self.seed, f"{self.name}/{name}", start=self.start, device=self.device, dtype=self.dtype)

    def _stream(self) -> str:
        self.step += 1
        return f"{self.name}#{self.step}"

    def _rows(self, rows: int) -> Tensor:
        return torch.arange(self.start, self.start + rows, device=self.device)
