"""Contrastive flow matching."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.base import mean_square
from sciflow.transport.heads.velocity import Velocity
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.times import TimePrior

__all__ = ["ContrastiveFlowMatching", "other_class"]


class ContrastiveFlowMatching(TransportObjective):
    r"""DeltaFM: |v(x_t, t, c) - u_t|^2 - strength |v(x_t, t, c) - u~_t|^2 with u~ of another row of another condition.

    Pushes the fields of conditions apart, so that draws are more typical of theirs. It is biased: u~ is independent of x_t,
    so the minimiser is (v - strength m) / (1 - strength), v the field of flow matching and m(t, c) the mean conditional
    velocity of the other conditions. It overshoots by strength (v - m) / (1 - strength): draws follow no p(x | c).

    Rows count as another class if any entry of their condition differs: for continuous conditions that is every other row;
    `entry` names the one entry of a dict that tells the class. Negatives are drawn uniformly from the batch, sample weights
    apart; rows without any other class in their batch, and rows whose condition was dropped, are trained by flow matching.

    Arguments:
        strength: 0 <= strength < 1; 0 is flow matching.
        entry: of the condition, for dicts.
        coupling, times, drop_condition: as for every transport objective.

    Raises `UserError` for a flow without a condition and for heads that do not predict the velocity.

    Source: Contrastive Flow Matching, Stoica et al. 2025, arXiv 2506.05350 (strength 0.05).
    """

    needs_condition = True
    velocity_only = True

    def __init__(
        self, strength: float = 0.05, *, entry: str | None = None, coupling: Coupling | None = None,
        times: TimePrior | None = None, drop_condition: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(coupling=coupling, times=times, drop_condition=drop_condition)
        if not 0 <= strength < 1:
            raise UserError(f"strength={strength}: from 1 on the loss has no minimum, below 0 it attracts; give 0 to below 1")
        self.strength, self.entry = strength, entry

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        pair = bridge.pair
        if pair.context is None:
            raise UserError("contrastive flow matching needs a condition to contrast: use FlowMatching")
        if not isinstance(flow.head, Velocity):
            raise UserError(f"contrastive flow matching contrasts velocities, the head is {flow.head!r}: use Velocity()")
        condition = pair.condition[self.entry] if self.entry is not None else pair.condition
        row, found = other_class(condition, len(bridge.t))
        if flow.null is not None:
            found = found & (pair.context != flow.null).any(1)
        mask = None if pair.mask is None else pair.mask[row]
        # the velocity of the other pair at this row's time
        other = flow.path(Pair(pair.x0[row], pair.x1[row], mask=mask), bridge.t, flow.space).ut
        both = None if mask is None or pair.mask is None else mask & pair.mask
        out = self.output(flow, bridge)
        distance = mean_square(out.squeeze(1) - other, both)
        return flow.head.nll(out, bridge, flow.path) - self.strength * torch.where(found, distance, 0)

    def extra_repr(self) -> str:
        return f"strength={self.strength}, entry={self.entry!r}, {super().extra_repr()}"


def other_class(condition: Any, rows: int) -> tuple[Tensor, Tensor]:
    """For each row the number of a random row with another condition, and whether there is one (B,).

    Uniform over the rows of other classes, in O(B log B), from torch's generator.
    """
    label = _label(condition, rows)
    order = label.argsort()
    ranked = label[order]
    first, last = torch.searchsorted(ranked, label), torch.searchsorted(ranked, label, right=True)
    others = rows - (last - first)
    # the k-th of the other rows, once those of the own class are skipped
    k = (torch.rand(rows, device=label.device) * others).long().minimum((others - 1).clamp_min(0))
    place = torch.where(k < first, k, k + (last - first)).clamp(max=rows - 1)
    return order[place], others > 0


def _label(condition: Any, rows: int) -> Tensor:
    """One number per row, equal where all entries of the condition are."""
    leaves = list(_leaves(condition))
    columns = torch.cat([leaf.double().expand(rows, *leaf.shape[1:]).reshape(rows, -1) for leaf in leaves], 1)
    if columns.shape[1] == 1:
        return columns[:, 0]
    return torch.unique(columns, dim=0, return_inverse=True)[1]


def _leaves(condition: Any) -> list[Tensor]:
    if isinstance(condition, Mapping):
        return [leaf for key in sorted(condition) for leaf in _leaves(condition[key])]
    return [condition]
