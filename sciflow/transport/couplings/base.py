"""The contract of a coupling: which noise meets which target."""

from __future__ import annotations

from abc import ABC, abstractmethod

from sciflow.transport.pair import Pair
from sciflow.transport.part import Part
from sciflow.transport.spaces.base import Space

__all__ = ["Coupling", "Independent"]


class Coupling(Part, ABC):
    """Pair -> Pair: rearranges or reweights x0 against x1; pure, picklable, random through torch's generator alone.

    x1, condition, context and mask stay in place. A coupling that makes x0 depend on the condition (`keeps_condition`
    False) must not be trained with one: at sampling the base does not know it.
    """

    rearranges: bool = True  # noise moves between rows, also between rows of different conditions
    keeps_condition: bool = True  # x0 stays independent of the condition
    keeps_base: bool = True  # the (weighted) marginal of x0 stays that of the base
    keeps_target: bool = True  # the weighted marginal of x1 stays that of the data
    needs_condition: bool = False  # meaningless without one
    needs_source: bool = False  # x0 has to come with the data, not from the base
    needs_equal_weights: bool = False  # every row counts the same in it: with weighted rows x0 would leave the base
    space: Space | None = None  # where it measures distances; None for R^n, or if it measures none
    sigma: float | None = None  # the noise of the one path it belongs to; None if it goes with any

    @abstractmethod
    def __call__(self, pair: Pair) -> Pair: ...


class Independent(Coupling):
    """Noise and target know nothing of each other."""

    rearranges = False

    def __call__(self, pair: Pair) -> Pair:
        return pair
