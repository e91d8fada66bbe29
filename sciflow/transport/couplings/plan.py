"""Couplings that choose for each target one of the batch's x0: what they share."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["Plan", "block_of", "condition_leaves", "squared_distances", "take"]


class Plan(Coupling):
    """Subclasses implement `choose`; rows are divided into groups first, and x0 never leaves its group.

    Groups are rows of the same mask (another mask needs another noise: x0 is 0 where features are absent), cut into pieces
    of `block` rows if that is set. A group of one row keeps its x0. Everything is computed without gradient and outside of
    autocast; gradients flow to the chosen x0. Weights have mean one in each group.

    Apart from the uniforms, one per row and drawn only if `random`, the result is a function of the pair.
    """

    needs_equal_weights = True
    random: bool = False
    block: int | None = None

    @abstractmethod
    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """For each of n targets the row number of its x0, (n,), and relative weights (n,) or None for equal ones."""

    def __call__(self, pair: Pair) -> Pair:
        return self.arrange(pair, self.uniform(len(pair.x1), pair.x1.device))

    def uniform(self, rows: int, device: torch.device | None = None) -> Tensor | None:
        """The random numbers that `arrange` needs for so many rows."""
        return torch.rand(rows, dtype=torch.float64, device=device) if self.random else None

    def arrange(self, pair: Pair, uniform: Tensor | None) -> Pair:
        """The coupled pair as a function of the uniforms.

        Raises `ValueError`, naming both shapes, if the endpoints differ in shape.
        """
        index, weight = self.arrangement(pair, uniform)
        if weight is not None and pair.weight is not None:
            weight = weight * pair.weight
        return pair._replace(x0=pair.x0[index], weight=pair.weight if weight is None else weight)

    def arrangement(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """For each target the row number of its x0, (B,), and its weight, (B,) or None."""
        if pair.x0.shape != pair.x1.shape:
            raise ValueError(f"x0 has shape {tuple(pair.x0.shape)} but x1 {tuple(pair.x1.shape)}: they must agree")
        index = torch.arange(len(pair.x1), device=pair.x1.device)
        weight: Tensor | None = None
        with torch.no_grad(), torch.autocast(pair.x1.device.type, enabled=False):
            for rows in self._groups(pair):
                whole = len(rows) == len(index)
                chosen, found = self.choose(
                    pair if whole else take(pair, rows), uniform if whole or uniform is None else uniform[rows]
                )
                index[rows] = rows[chosen]
                if found is not None:
                    weight = torch.ones_like(index, dtype=_real(pair.x1).dtype) if weight is None else weight
                    weight[rows] = (found / found.mean()).to(weight.dtype)
        return index, weight

    def labels(self, pair: Pair) -> list[Tensor]:
        """Integer or boolean columns (B, k); rows between which x0 may be exchanged agree in all of them."""
        return [] if pair.mask is None else [pair.mask.flatten(1)]

    def _groups(self, pair: Pair) -> list[Tensor]:
        """Row numbers of groups of at least two rows."""
        rows = len(pair.x1)
        labels = self.labels(pair)
        groups = [torch.arange(rows, device=pair.x1.device)]
        if labels:
            columns = torch.cat([label.to(torch.int64) for label in labels], 1)
            _, member, counts = torch.unique(columns, dim=0, return_inverse=True, return_counts=True)
            groups = list(torch.argsort(member, stable=True).split(counts.tolist()))
        if self.block is not None:
            groups = [piece for group in groups for piece in group.split(self.block)]
        return [group for group in groups if len(group) > 1]


def block_of(block: int | None) -> int | None:
    """Raises `UserError` for blocks in which there is nothing to choose."""
    return None if block is None else integer("block", block, 2, 2**62)


def squared_distances(pair: Pair, space: Space | None) -> Tensor:
    """|x0_j - x1_i|^2 as a matrix (targets i, bases j), geodesic in a space that is not flat; at least float32."""
    x0, x1 = _real(pair.x0), _real(pair.x1)
    if space is None or space.euclidean:
        shift = x1.mean(0)  # less cancellation far from the origin
        x0, x1 = (x0 - shift).flatten(1), (x1 - shift).flatten(1)
        return (x1.square().sum(1)[:, None] + x0.square().sum(1) - 2 * x1 @ x0.T).clamp_min(0)
    rows, columns = len(x1), len(x0)
    first = x0.repeat(rows, *[1] * (x0.dim() - 1))
    return space.distance(first, x1.repeat_interleave(columns, 0)).square().reshape(rows, columns)


def condition_leaves(condition: Any, rows: int, path: str = "condition") -> list[Tensor]:
    """The leaves of a nested condition as columns (rows, k), in the order of their sorted names."""
    if condition is None:
        return []
    if isinstance(condition, Mapping):
        return [leaf for key in sorted(condition) for leaf in condition_leaves(condition[key], rows, f"{path}.{key}")]
    if condition.shape[:1] != (rows,):
        raise ValueError(f"{path} has shape {tuple(condition.shape)}, expected ({rows}, ...) for {rows} rows")
    return [condition.reshape(rows, math.prod(condition.shape[1:]))]


def take(pair: Pair, rows: Tensor) -> Pair:
    """These rows of a pair, those of a nested condition included."""

    def leaf(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: leaf(entry) for key, entry in value.items()}
        return None if value is None else value[rows]

    return Pair(*(leaf(value) for value in pair))


def _real(x: Tensor) -> Tensor:
    x = x.detach()
    return x if x.dtype in (torch.float32, torch.float64) else x.float()
