"""The contract of objectives that learn from an energy, and what they have in common."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.target import Target
from sciflow.training import Objective

__all__ = ["EnergyObjective"]


class EnergyObjective(Objective):
    """An objective that asks a target instead of data: it makes its own rows, as many as the batch has.

    `bind` comes before the training. Rows whose energy is not a finite number are left out and counted; `report` tells how
    many. Where no row of a step is finite the training stops.
    """

    drawn: Tensor
    excluded: Tensor
    target: Target

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))
        self.register_buffer("excluded", torch.zeros((), dtype=torch.int64))

    def bind(self, target: Target, rows: int, seed: int) -> None:
        """Say what is learned, how many rows a step has, and the seed of samplers inside."""
        self.target, self.seed = target, seed

    def counted(self, good: Tensor) -> Tensor:
        """The factor for losses of which only the `good` (B,) count. Raises `UserError` if none is."""
        self.drawn += len(good)
        self.excluded += (~good).sum()
        if not bool(good.any()):
            raise UserError(
                f"none of {len(good)} draws has a finite energy (so far {int(self.excluded)} of {int(self.drawn)} had none): "
                "start the flow where the target lives (shift, scale), or look for a division or a logarithm in the energy"
            )
        return len(good) / good.sum()

    def report(self) -> dict[str, Any]:
        return {"drawn": int(self.drawn), "excluded": int(self.excluded)}

    def extra_repr(self) -> str:
        return f"target={self.target!r}" if hasattr(self, "target") else ""
