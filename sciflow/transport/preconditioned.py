"""A network that only learns what a linear rule does not know already."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import TimeNetwork, expand_time
from sciflow.transport.paths.base import AffinePath
from sciflow.transport.paths.linear import Linear

__all__ = ["Preconditioned"]


class Preconditioned(TimeNetwork):
    r"""The best linear velocity for data of standard deviation d, plus what the network F adds to it:

        v(x, t) = (d^2 a a' + s s') x / n^2 + d (s a' - a s') / n F(x / n, c),      n^2 = d^2 a^2 + s^2,

    with x_t = a x_1 + s x_0. F sees inputs of variance 1 and, for data of variance d^2, learns targets of variance 1 at every
    time; its clock c = log(d a / s) / 7, cut to [-1, 1], resolves the least noise as well as the most. At F = 0 the velocity is
    that of normal data. The denoiser that belongs to it is that of Karras et al., D = c_skip x + c_out F, for every path.

    Arguments:
        network: F, a `TimeNetwork` of one channel.
        data_scale: d, the standard deviation of the entries of x_1.
        path: that of the flow; `Linear` by default.

    Raises `UserError` for d <= 0, a path without a and s, or a network of several channels or of two times.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364.

    >>> from sciflow.networks import UNet
    >>> Preconditioned(UNet((1, 8, 8), widths=(8,)), 0.5)(torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape
    torch.Size([3, 1, 1, 8, 8])
    """

    def __init__(self, network: TimeNetwork, data_scale: float = 1.0, *, path: AffinePath | None = None) -> None:
        super().__init__()
        path = Linear() if path is None else path
        if not 0 < data_scale < math.inf:
            raise UserError(f"data_scale={data_scale}: give the standard deviation of the data, > 0")
        if not isinstance(path, AffinePath):
            raise UserError(f"{path!r} has no linear velocity: give an affine path")
        if network.channels != 1 or network.two_time:
            raise UserError(
                f"the network has {network.channels} channels and {'two times' if network.two_time else 'one time'}: "
                "a preconditioned velocity needs one of each"
            )
        self.network, self.data_scale, self.path = network, float(data_scale), path
        self.event_shape, self.context, self.maskable = network.event_shape, network.context, network.maskable
        self.channels = 1

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        d = self.data_scale
        t = t.to(x.dtype).expand(len(x))
        signal, noise, signal_rate, noise_rate = self.path.coefficients(t)
        clock = (torch.log(d * signal.clamp_min(1e-30)) - torch.log(noise.clamp_min(1e-30))).div(7).clamp(-1, 1)
        square = d**2 * signal.square() + noise.square()
        linear = (d**2 * signal * signal_rate + noise * noise_rate) / square
        size = d * (noise * signal_rate - signal * noise_rate) / square.sqrt()
        learned = self.network(x * expand_time(square.rsqrt(), x), clock, context, mask)
        wide = (expand_time(value, x).unsqueeze(1) for value in (linear, size))
        line, factor = wide
        return line * x.unsqueeze(1) + factor * learned.to(x.dtype)

    def extra_repr(self) -> str:
        return f"data_scale={self.data_scale:g}, path={self.path!r}"
