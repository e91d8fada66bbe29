"""A velocity that knows the linear answer: what x_t and the scan say together, if images were normal."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.transport import FlowMatching, TransportFlow
from sciflow.transport.pair import Bridge
from sciflow_mri.model.conditions import DATA_SCALE, SPREAD

__all__ = ["FusedMatching", "FusedVelocity"]

_LEAST = 0.01  # deviation of the damped image: below it maps and phases err more than noise


class _Fused(NamedTuple):
    u: Tensor  # (B, 2, H, W)
    square: Tensor  # s^2, (B, 1, H, W) as the next
    linear: Tensor  # (c u - x_t) / (1 - t), (B, 2, H, W)
    size: Tensor  # what multiplies F


class FusedVelocity(TimeNetwork):
    r"""v(x_t, t) = (D - x_t) / (1 - t) on the straight path, with D the guess of x_1 from x_t and from the scan's N(m, e^2):

        1 / s^2 = 1 / e^2 + t^2 / (1 - t)^2,    u = s^2 (m / e^2 + t x_t / (1 - t)^2),
        D = c u + d s / n F(u / n, log(d / s) / 7),    n^2 = d^2 + s^2,  c = d^2 / n^2,

    pixel by pixel. m and e are images of the condition (`condition_of`), e not below 0.01. For s known in all pixels alike this
    is the denoiser of `Preconditioned` at noise s: F may start as that of a prior, which then denoises the damped image. The
    targets of F are about 1 for every scan and time.

    Arguments:
        network: F, which sees the images of the condition too.
        data_scale: d, the standard deviation of the entries of x_1.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364 (of one
    noise level, without a scan).

    >>> network = ImageConditionedUNet((2, 8, 8), 6, 2, widths=(8,))
    >>> FusedVelocity(network)(torch.zeros(3, 2, 8, 8), torch.zeros(3), torch.ones(3, 386)).shape
    torch.Size([3, 1, 2, 8, 8])
    """

    def __init__(self, network: ImageConditionedUNet, data_scale: float = DATA_SCALE) -> None:
        super().__init__()
        if not 0 < data_scale < math.inf:
            raise UserError(f"data_scale={data_scale}: give the standard deviation of the data, > 0")
        if network.channels != 1 or network.two_time or network.images <= SPREAD:
            raise UserError(
                f"the network has {network.channels} channels, {'two times' if network.two_time else 'one time'} and "
                f"{network.images} images: a fused velocity needs one, one and {SPREAD + 1} at least"
            )
        self.network, self.data_scale = network, float(data_scale)
        self.event_shape, self.context, self.channels = network.event_shape, network.context, 1

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        found = self.fused(x, t, context)
        n = (self.data_scale**2 + found.square).sqrt()
        level = found.square.clamp_min(1e-12).log().mean((1, 2, 3)).mul(0.5)
        clock = (math.log(self.data_scale) - level).div(7).clamp(-1, 1)
        learned = self.network(found.u / n, clock, context, mask).squeeze(1)
        return (found.linear + found.size * learned.to(x.dtype)).unsqueeze(1)

    def fused(self, x: Tensor, t: Tensor, context: Tensor | None) -> _Fused:
        """u, s^2, and the parts of the velocity (B, ...) that do not depend on F. Finite at both ends of the path."""
        if context is None or context.shape != (len(x), self.context):
            found = "none" if context is None else str(tuple(context.shape))
            raise ValueError(f"the velocity needs a context of shape ({len(x)}, {self.context}), got {found}")
        images = context[:, : self.network.images * x[0, 0].numel()].to(x.dtype).reshape(len(x), -1, *x.shape[2:])
        m, e2 = images[:, :2], (DATA_SCALE * images[:, SPREAD : SPREAD + 1]).square() + _LEAST**2
        t = expand_time(t.to(x.dtype), x)
        rest, d2 = 1 - t, self.data_scale**2
        both = rest.square() + t.square() * e2
        u, square = (m * rest.square() + t * e2 * x) / both, rest.square() * e2 / both
        straight = ((m - x) * rest + t * e2 * x) / both  # (u - x) / (1 - t)
        linear = straight - rest * e2 / both / (d2 + square) * u
        return _Fused(u, square, linear, (d2 * e2 / ((d2 + square) * both)).sqrt())

    def extra_repr(self) -> str:
        return f"data_scale={self.data_scale:g}"


class FusedMatching(FlowMatching):
    """Flow matching with the error of F in the place of that of the velocity: every scan, pixel and time counts alike."""

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        if not isinstance(flow.network, FusedVelocity):
            raise UserError(f"the network is a {type(flow.network).__name__}: FusedMatching trains a FusedVelocity")
        with torch.no_grad():
            size = flow.network.fused(bridge.xt, bridge.t, bridge.pair.context).size
        error = (self.output(flow, bridge).squeeze(1) - bridge.ut) / size
        return error.square().flatten(1).mean(1)
