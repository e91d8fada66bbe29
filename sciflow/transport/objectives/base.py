"""The contract of a transport objective: a batch becomes pairs, pairs become bridges, bridges a loss per row."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.wrapper import Wrapper
from sciflow.training import Batch, Objective
from sciflow.transport.compatibility import check_batch, check_kinds, check_objective
from sciflow.transport.couplings.base import Coupling, Independent
from sciflow.transport.flow import TransportFlow
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.times import TimePrior, Uniform

__all__ = ["TransportObjective", "unwrapped"]


class TransportObjective(Objective):
    """What papers subclass: `loss(flow, bridge)` sees the flow, the whole batch, and may own teachers.

    Arguments:
        coupling: which noise meets which target.
        times: where along the path the loss is taken.
        drop_condition: probability that a row's condition is replaced by the flow's learned null context, for
            classifier-free guidance.

    `Batch.source` (given pairs) takes the place of the base's draws. The loss of a row is multiplied by the weights of its
    time and of its coupling; the latter have mean one over the batch. The flow remembers that there were sources, unless they
    are draws of its base all the same (`source_is_noise`).
    """

    source_is_noise: bool = False

    def __init__(
        self, *, coupling: Coupling | None = None, times: TimePrior | None = None, drop_condition: float = 0.0
    ) -> None:
        super().__init__()
        self.coupling: Coupling = Independent() if coupling is None else coupling
        self.times: TimePrior = Uniform() if times is None else times
        check_kinds(coupling=(self.coupling, Coupling), times=(self.times, TimePrior))
        if not 0 <= drop_condition <= 1:
            raise UserError(f"drop_condition={drop_condition} is no probability")
        self.drop_condition = drop_condition
        self._checked: Any = None

    @abstractmethod
    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        """One loss per row, (B,)."""

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        flow, batch = unwrapped(flow, batch)
        if self._checked is not flow:
            check_objective(flow, self)
            object.__setattr__(self, "_checked", flow)
        pair = self.pair(flow, batch)
        t, weight = self.times(len(batch.x), pair.x1)
        loss = self.loss(flow, flow.path(pair, t, flow.space))
        if weight is not None:
            loss = loss * weight
        if pair.weight is not None:
            loss = loss * (pair.weight / _mean(pair.weight, batch.weight))
        return loss

    def pair(self, flow: TransportFlow, batch: Batch) -> Pair:
        """Base draws (or given sources) coupled to the batch; the context is dropped in some rows."""
        check_batch(flow, batch)
        context = flow.encoder(batch.condition)
        rows = len(batch.x)
        if context is not None:
            context = context.to(batch.x.dtype).expand(rows, -1)
            if self.drop_condition and flow.null is not None and flow.training:
                dropped = torch.rand(rows, 1, device=batch.x.device) < self.drop_condition
                context = torch.where(dropped, flow.null.to(context.dtype), context)
        if self.coupling.needs_source and batch.source is None:
            raise UserError(
                f"{self.coupling!r} keeps given pairs, but the data have no source: give Batch.source or use Independent"
            )
        if self.coupling.needs_equal_weights and batch.weight is not None:
            raise UserError(
                f"{self.coupling!r} gives every row the same mass, so that with weighted rows the noise would leave the base: "
                "resample the rows by their weight, or use Independent"
            )
        x0 = batch.source
        learns = getattr(flow.base, "needs_condition", False) or getattr(flow.base, "trainable", False)
        if x0 is not None and learns and any(weight.requires_grad for weight in flow.base.parameters()):
            raise UserError(
                f"given sources take the place of draws of {type(flow.base).__name__}, which would learn nothing: freeze it "
                "(flow.base.requires_grad_(False)) if the sources are its draws, or use a base without weights"
            )
        if x0 is not None and flow.training and not (self.source_is_noise or getattr(self.coupling, "source_is_noise", False)):
            flow.sources.remember()
        if x0 is None:
            x0 = flow.base.rsample(rows, context, batch.mask, device=batch.x.device, dtype=batch.x.dtype)
        x1 = flow.shifted(batch.x, context, batch.mask)
        return self.coupling(Pair(x0, x1, batch.condition, None, batch.mask, context))

    def output(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        """The network's output on the bridge."""
        pair = bridge.pair
        s = bridge.t if flow.network.two_time else None
        return flow.output(bridge.xt, bridge.t, pair.context, pair.mask, s)

    def extra_repr(self) -> str:
        return f"coupling={self.coupling!r}, times={self.times!r}, drop_condition={self.drop_condition}"


def unwrapped(flow: nn.Module, batch: Batch) -> tuple[TransportFlow, Batch]:
    """The transport inside preprocessing, dequantisation or an autoencoder, and the batch as it sees it."""
    found = flow
    while isinstance(found, Wrapper):
        found, batch = found.inside(batch)
    if not isinstance(found, TransportFlow):
        raise UserError(f"{type(found).__name__} is no TransportFlow: it learns by likelihood, not by matching a velocity")
    return found, batch


def _mean(weight: Tensor, given: Tensor | None) -> Tensor:
    return weight.mean() if given is None else (weight * given).sum() / given.sum()
