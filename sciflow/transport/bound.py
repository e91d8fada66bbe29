"""The field of a flow with its condition bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.bases.shift import in_frame, no_score, shifts_of
from sciflow.transport.field import Field
from sciflow.transport.heads.velocity import Velocity

if TYPE_CHECKING:
    from sciflow.transport.flow import TransportFlow

__all__ = ["BoundField"]


class BoundField(Field):
    """Network and head at a fixed context (B, C) and mask (B, *event)."""

    def __init__(self, flow: TransportFlow, context: Tensor | None, mask: Tensor | None) -> None:
        self.flow, self.context, self.mask = flow, context, mask
        self.path, self.space = flow.path, flow.space.masked(mask)
        self.shifts = shifts_of(flow, context, mask)
        self.no_score, self.tells_endpoint = no_score(flow), flow.head.tells_endpoint

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        out, t = self._output(t, x)
        return self._present(self.space.tangent(x, self.flow.head.velocity(out, x, t, self.path, self.mask)))

    def endpoint(self, t: Tensor, x: Tensor) -> Tensor:
        out, t = self._output(t, x)
        return self._present(self.flow.head.endpoint(out, x, t, self.path, self.mask))

    def velocity_and_noise(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        out, t = self._output(t, x)
        v = self.space.tangent(x, self.flow.head.velocity(out, x, t, self.path, self.mask))
        return self._present(v), self._present(self._centred(self.flow.head.noise(out, x, t, self.path, self.mask)))

    def average(self, t: Tensor, s: Tensor, x: Tensor) -> Tensor:
        network = self.flow.network
        if not network.two_time:
            raise UserError(f"{type(network).__name__} is a one-time network: build it with two_time=True to jump")
        t, s = t.to(x.dtype).expand(len(x)), s.to(x.dtype).expand(len(x))
        return self._present(self.flow.output(x, t, self.context, self.mask, s).squeeze(1))

    def rows(self, index: Tensor) -> Field:
        context = None if self.context is None else self.context[index]
        return BoundField(self.flow, context, None if self.mask is None else self.mask[index])

    @property
    def velocity_and_divergence(self) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """By the network's own `output_and_divergence`, if it has one that means the velocity; else None."""
        own = self.flow.network.divergence_by_hand
        # with a mask the trace is over present features only, and a curved space or another head transform the output
        if own is None or self.mask is not None or not self.space.euclidean or type(self.flow.head) is not Velocity:
            return None

        def both(t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
            t = t.to(x.dtype).expand(len(x))
            out, divergence = own(x, t, self.context, t if self.flow.network.two_time else None)
            return out.squeeze(1), divergence

        return both

    def unconditional(self) -> Field:
        if self.context is None:
            return self
        if self.flow.null is None:
            raise UserError("the flow knows no unconditional field: build it with unconditional=True and drop the condition")
        free = BoundField(self.flow, self.flow.null.expand_as(self.context), self.mask)
        return free if self.shifts == (None, None) else in_frame(free, self.shifts)

    def _output(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        t = t.to(x.dtype).expand(len(x))
        # a two-time network is a one-time one where both times agree
        s = t if self.flow.network.two_time else None
        return self.flow.output(x, t, self.context, self.mask, s), t

    def _present(self, v: Tensor) -> Tensor:
        return v if self.mask is None else v * self.mask
