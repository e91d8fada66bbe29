"""Rectified flow, second and later rounds."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.arguments import real
from sciflow.errors import UserError
from sciflow.training import Batch
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.base import mean_square
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.times import TimePrior, UShaped

__all__ = ["Reflow"]


class Reflow(TransportObjective):
    r"""Flow matching on pairs (x_0, x_1) that a trained flow joins: their straight lines hardly cross, so the new flow
    is nearly straight and one Euler step is nearly right. `sciflow.transport.reflow.reflow_pairs` makes the pairs.

    The loss is pseudo-Huber, sqrt(m + c^2) - c, of the mean square m over the features; times lie densely at both ends.

    Arguments:
        huber: c; None for the mean square itself, whose minimum is the mean displacement where lines cross.
        times: `UShaped()` by default. Where one Euler step is all that is wanted, only t = 0 counts: `PowerLaw(-0.9)` with
            `huber=None` keeps most of the training there (benchmarks/few_step.py).
        coupling, drop_condition: see `TransportObjective`; the coupling must keep the pairs, so only the default makes sense.

    Raises `UserError` if the data have no `source`.

    Source: Flow Straight and Fast, Liu et al. 2022, arXiv 2209.03003; Improving the Training of Rectified Flows,
    Lee et al. 2024, arXiv 2405.20320.
    """

    needs_source = True
    source_is_noise = True
    linear_only = True

    def __init__(
        self, *, huber: float | None = 5.4e-4, coupling: Coupling | None = None, times: TimePrior | None = None,
        drop_condition: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(coupling=coupling, times=UShaped() if times is None else times, drop_condition=drop_condition)
        self.huber = None if huber is None else real("huber", huber, 0)

    def pair(self, flow: TransportFlow, batch: Batch) -> Pair:
        if batch.source is None:
            raise UserError("Reflow learns given pairs, but the data have no source: make them with reflow_pairs(flow, ...)")
        return super().pair(flow, batch)

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        velocity = flow.head.velocity(self.output(flow, bridge), bridge.xt, bridge.t, flow.path, bridge.pair.mask)
        square = mean_square(velocity - bridge.ut, bridge.pair.mask)
        return square if self.huber is None else torch.sqrt(square + self.huber**2) - self.huber

    def extra_repr(self) -> str:
        return f"huber={self.huber}, {super().extra_repr()}"
