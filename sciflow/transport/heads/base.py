"""The contract of a head: what the raw output of the network means."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

from sciflow.transport.pair import Bridge
from sciflow.transport.part import Part
from sciflow.transport.paths.base import Path

__all__ = ["Head", "mean_square", "present_mean"]


class Head(Part, ABC):
    """Reads out (B, channels, *event_shape), the output of a `TimeNetwork` with that many channels.

    Attributes:
        endpoint_stepping: the velocity is singular at t = 1, so that an endpoint stepper is needed.
        needs_affine: the velocity follows from another quantity by the formulas of an affine path.
        needs_noise: a noisy path is needed, the head learns its noise.

    The mask (B, *event) matters to heads that pool over features; absent features of the results are arbitrary.
    """

    channels: int = 1
    tangent: bool = False  # whether the output is the velocity itself: on curved spaces it is made a tangent vector
    endpoint_stepping: bool = False
    needs_affine: bool = False
    needs_noise: bool = False

    @property
    def tells_endpoint(self) -> bool:
        """Whether the endpoint is its own, and not found from a velocity, which tells nothing where a path stands still."""
        return type(self).endpoint is not Head.endpoint

    def check_rows(self, x: Tensor, mask: Tensor | None) -> None:
        """Raises `UserError` if rows x (B, *event) of a training set are none that this head can be about."""

    @abstractmethod
    def velocity(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        """The marginal velocity (B, *event)."""

    def endpoint(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        """E[x1 | xt] (B, *event)."""
        return path.endpoint_from_velocity(self.velocity(out, xt, t, path, mask), xt, t)

    def noise(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        """E[noise | xt] (B, *event), the noise whose standard deviation in xt is `path.deviation`."""
        return path.noise_from_velocity(self.velocity(out, xt, t, path, mask), xt, t)

    @abstractmethod
    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        """One loss per row (B,), minimal at the marginal quantity."""


def mean_square(difference: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the present features of the squared difference, (B,)."""
    return present_mean(difference.square(), mask)


def present_mean(values: Tensor, mask: Tensor | None) -> Tensor:
    """Mean over the present features of values (B, *event), (B,); 0 where none is present."""
    values = values.flatten(1)
    if mask is None:
        return values.mean(1)
    present = mask.flatten(1)
    # where, not a product: an absent feature may hold anything, infinities included
    return values.where(present, values.new_zeros(())).sum(1) / present.sum(1).clamp_min(1)
