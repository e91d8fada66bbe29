"""The contract of a stepper: how a field is followed from one time to another."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from torch import Tensor

from sciflow.transport.divergence import Divergence, LogDensity
from sciflow.transport.field import Field
from sciflow.transport.part import Part

__all__ = ["Solution", "Stepper"]


class Solution(NamedTuple):
    """The end of a trajectory: rows x (B, *event), log |det dx_end / dx_start| or None, and velocity evaluations per row."""

    x: Tensor
    log_det: LogDensity | None
    evaluations: Tensor | int


class Stepper(Part, ABC):
    """Follows a field from time `start` to time `end`; backwards if end < start and the stepper is `reversible`.

    A stepper with `density` integrates the divergence beside x, in one solve. One that consumes randomness says how many
    uniforms a row takes (`uniforms`), so that draws are addressable; given none it draws from torch's generator.
    """

    density: bool = True
    reversible: bool = True

    @abstractmethod
    def solve(
        self, field: Field, x: Tensor, start: float, end: float, *, divergence: Divergence | None = None,
        uniform: Tensor | None = None,
    ) -> Solution: ...  # fmt: skip

    def uniforms(self, event_shape: tuple[int, ...]) -> int:
        """How many uniforms in (0, 1) a row takes on its way."""
        return 0
