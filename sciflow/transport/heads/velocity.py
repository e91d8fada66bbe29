"""The velocity itself."""

from __future__ import annotations

from torch import Tensor

from sciflow.transport.heads.base import Head, mean_square
from sciflow.transport.pair import Bridge
from sciflow.transport.paths.base import Path

__all__ = ["Velocity"]


class Velocity(Head):
    """v = out; mean squared error against the conditional velocity.

    Source: Flow Matching for Generative Modeling, Lipman et al. 2022, arXiv 2210.02747.
    """

    tangent = True

    def velocity(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return out.squeeze(1)

    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        return mean_square(out.squeeze(1) - bridge.ut, bridge.pair.mask)
