"""Networks whose velocities fit a space."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import TimeMLP, TimeNetwork
from sciflow.shapes import shape_of
from sciflow.transport.spaces.base import Space

__all__ = ["OnSpace", "mlp_on"]


class OnSpace(TimeNetwork):
    r"""f(x, t) = pullback(x, network(embed(x), t)): a velocity that is smooth and tangent on the whole space.

    The network sees what equivalent points share (cos and sin of an angle, the matrix of a rotation) and its output is turned
    into tangent vectors that cross no wall and do not reach infinity. Only so do densities integrate to one.

    Arguments:
        space: where the points live.
        network: for events whose last axis is `space.width(size)`.
        event_shape: of the points.

    >>> from sciflow.networks.time_network import TimeMLP
    >>> from sciflow.transport.spaces import Torus
    >>> OnSpace(Torus(), TimeMLP(4), 2)(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 1, 2])
    """

    def __init__(self, space: Space, network: TimeNetwork, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.space, self.network = space, network
        self.event_shape = shape_of(event_shape)
        self.context, self.channels, self.two_time = network.context, network.channels, network.two_time
        wanted = (*self.event_shape[:-1], space.width(self.event_shape[-1]))
        if tuple(network.event_shape) != wanted:
            raise UserError(
                f"events {tuple(self.event_shape)} of {space!r} have embedded shape {wanted}, "
                f"the network is made for {tuple(network.event_shape)}"
            )

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        seen, present, space = self.space.embed(x), None, self.space
        if mask is not None:
            present, space = space.embed_mask(mask), space.masked(mask.unsqueeze(1))
            seen = torch.where(present, seen, 0)
        out = self.network(seen, t, context, present, s)
        points = x.unsqueeze(1).expand(-1, self.channels, *self.event_shape)
        return space.pullback(points, out)

    def extra_repr(self) -> str:
        return f"space={self.space!r}, event_shape={tuple(self.event_shape)}"


def mlp_on(space: Space, event_shape: tuple[int, ...], context: int, channels: int, **arguments: Any) -> TimeNetwork:
    """A `TimeMLP` for the space, from its other arguments."""
    if space.euclidean:
        return TimeMLP(event_shape, context, channels, **arguments)
    embedded = (*event_shape[:-1], space.width(event_shape[-1]))
    return OnSpace(space, TimeMLP(embedded, context, channels, **arguments), event_shape)
