"""Paths with noise of their own between the endpoints."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.paths.base import AffinePath, Path
from sciflow.transport.paths.linear import Linear
from sciflow.transport.spaces.base import Space

__all__ = ["NoisyPath"]


class NoisyPath(Path):
    r"""x_t = a x_1 + s x_0 + gamma(t) eps, u_t = a' x_1 + s' x_0 + gamma'(t) eps with eps standard normal, in R^n.

    Arguments:
        mean: the affine path that the noise is added to.
        floor: gamma' is taken at times clamped to [floor, 1 - floor], because it may be infinite at the ends.

    The velocity alone tells neither endpoint nor score (three unknowns, two equations): the head `VelocityAndNoise` learns
    both, and with it any base and any coupling has a score.
    """

    straight = True
    noisy = True

    def __init__(self, mean: AffinePath | None = None, *, floor: float = 1e-4) -> None:
        self.mean: AffinePath = Linear() if mean is None else mean
        if not 0 < floor < 0.5:
            raise UserError(f"floor={floor}: give a number between 0 and 0.5, such as 1e-4")
        self.floor = floor

    @abstractmethod
    def gamma(self, t: Tensor) -> Tensor:
        """The standard deviation of the added noise, an elementwise function that is 0 at t = 0 and t = 1."""

    def gamma_rate(self, t: Tensor) -> Tensor:
        """gamma'(t), finite."""
        inside = t.clamp(self.floor, 1 - self.floor)
        return torch.func.jvp(self.gamma, (inside,), (torch.ones_like(inside),))[1]

    def __call__(self, pair: Pair, t: Tensor, space: Space) -> Bridge:
        bridge = self.mean(pair, t, space)
        noise = torch.randn_like(bridge.xt)
        if pair.mask is not None:
            noise = noise * pair.mask
        times = expand_time(t, noise).to(noise.dtype)
        xt, ut = bridge.xt + self.gamma(times) * noise, bridge.ut + self.gamma_rate(times) * noise
        return Bridge(pair, t, xt, ut, noise)

    def deviation(self, t: Tensor, x: Tensor) -> Tensor:
        """gamma(t)."""
        return self.gamma(expand_time(t, x).to(x.dtype))

    def endpoint_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        self._no("endpoint from the velocity alone: use the head VelocityAndNoise")

    def velocity_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        self._no("velocity from the endpoint alone: use the head VelocityAndNoise")

    def noise_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        self._no("score from the velocity alone: use the head VelocityAndNoise")
