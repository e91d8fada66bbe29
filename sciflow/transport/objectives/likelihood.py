"""Maximum likelihood with a learned end time."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork
from sciflow.training import Batch, MaximumLikelihood

__all__ = ["EndTime", "TemporalLikelihood"]


class EndTime(TimeNetwork):
    """A network whose flow takes the time T instead of 1: T v(x, T t), with T = exp(log_time) learned beside its weights.

    >>> from sciflow.networks.time_network import TimeMLP
    >>> EndTime(TimeMLP(2, hidden=(8,)), time=0.5)(torch.zeros(3, 2), torch.zeros(3)).shape
    torch.Size([3, 1, 2])
    """

    def __init__(self, network: TimeNetwork, *, time: float = 1.0) -> None:
        super().__init__()
        if network.two_time or network.channels != 1:
            raise UserError("EndTime needs a one-time velocity network: two_time=False and one channel")
        if time <= 0:
            raise UserError(f"time={time}: give an end time above 0")
        self.network, self.log_time = network, nn.Parameter(torch.tensor(time).log())
        self.event_shape, self.context, self.channels = network.event_shape, network.context, 1
        self.time_moves = True  # whether gradients reach T: `TemporalLikelihood` sets it

    @property
    def time(self) -> Tensor:
        """T."""
        return (self.log_time if self.time_moves else self.log_time.detach()).exp()

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        return self.time * self.network(x, self.time * t, context, mask)

    @property
    def output_and_divergence(self) -> Any:
        """As the network's own, where it has one; else None."""
        own: Any = self.network.divergence_by_hand

        def both(x: Tensor, t: Tensor, context: Tensor | None = None, s: Tensor | None = None) -> tuple[Tensor, Tensor]:
            out, divergence = own(x, self.time * t, context, s)
            return self.time * out, self.time * divergence

        return None if own is None else both


class TemporalLikelihood(MaximumLikelihood):
    r"""-log p(x), by turns in the weights and in the end time T of an `EndTime` network, plus weight T^2 per batch.

    A shorter way costs an adaptive stepper fewer evaluations; the penalty is what it is worth.

    Arguments:
        weight: nats per squared unit of time.
        every: T moves in one of so many steps, the weights in the others.

    Source: TO-FLOW: Efficient Continuous Normalizing Flows with Temporal Optimization adjoint with Moving Speed, Du et al.
    2022, arXiv 2203.14335.
    """

    def __init__(self, *, weight: float = 0.1, every: int = 2) -> None:
        super().__init__()
        if weight < 0 or every < 1:
            raise UserError(f"weight={weight}, every={every}: give a weight of at least 0 and at least one step")
        self.weight, self.every = weight, every
        self.steps: Tensor
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        network = getattr(flow, "network", None)
        if not isinstance(network, EndTime):
            found = type(network).__name__
            raise UserError(f"TemporalLikelihood learns an end time: build the flow with EndTime(network), not {found}")
        moves = int(self.steps) % self.every == 0
        rest = [p for p in network.network.parameters() if p.requires_grad and moves and self.every > 1]
        network.time_moves = moves
        try:
            for parameter in rest:
                parameter.requires_grad_(False)
            return super().forward(flow, batch)
        finally:
            network.time_moves = True
            for parameter in rest:
                parameter.requires_grad_(True)

    def penalty(self, flow: nn.Module, batch: Batch) -> Tensor | None:
        moves = int(self.steps) % self.every == 0
        square = flow.network.time.square()  # type: ignore[union-attr,operator]
        return self.weight * (square if moves else square.detach())

    def after_step(self) -> None:
        self.steps += 1

    def extra_repr(self) -> str:
        return f"weight={self.weight}, every={self.every}"
