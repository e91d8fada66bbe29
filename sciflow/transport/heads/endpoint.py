"""The endpoint: variational flow matching with a normal posterior."""

from __future__ import annotations

from torch import Tensor

from sciflow.transport.heads.base import Head, mean_square
from sciflow.transport.pair import Bridge
from sciflow.transport.paths.base import AffinePath, Path

__all__ = ["Endpoint"]


class Endpoint(Head):
    """E[x1 | xt] = out: the mean of a normal posterior q(x1 | xt), by mean squared error against x1.

    The velocity a' mu + s' (xt - a mu) / s is singular at t = 1, where only the exact step of `EndpointStep` is safe.

    Source: Variational Flow Matching for Graph Generation, Eijkelboom et al. 2024, arXiv 2406.04843.
    """

    endpoint_stepping = True
    needs_affine = True

    def velocity(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return path.velocity_from_endpoint(self.endpoint(out, xt, t, path, mask), xt, t)

    def endpoint(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return out.squeeze(1)

    def noise(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        if not isinstance(path, AffinePath):
            return super().noise(out, xt, t, path, mask)
        return path.noise_from_endpoint(self.endpoint(out, xt, t, path, mask), xt, t)

    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        return mean_square(out.squeeze(1) - bridge.pair.x1, bridge.pair.mask)
