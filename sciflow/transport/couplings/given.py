"""Pairs that come with the data."""

from __future__ import annotations

from sciflow.transport.couplings.base import Coupling
from sciflow.transport.pair import Pair

__all__ = ["Given"]


class Given(Coupling):
    """Keeps each x0 with its x1: `Batch.source` holds the sources (reflow, paired data); noise would be paired at random.

    Whether x0 is independent of the condition, and follows the base, is then a property of the data.

    >>> Given().needs_source
    True
    """

    rearranges = False
    needs_source = True

    def __call__(self, pair: Pair) -> Pair:
        return pair
