"""Geodesics between noise and data."""

from __future__ import annotations

from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.transport.pair import Bridge, Pair
from sciflow.transport.paths.base import Path
from sciflow.transport.spaces.base import Euclidean, Space

__all__ = ["Geodesic"]


class Geodesic(Path):
    r"""x_t = exp_{x0}(t log_{x0} x1), u_t = d x_t / dt in closed form.

    On R^n, a box or a simplex this is the straight path. The endpoint that belongs to a velocity is where the geodesic
    leads that leaves x_t with it,

        x1 = exp_{xt}((1 - t) v),      v = log_{xt}(x1) / (1 - t),

    which is E[x1 | x_t] where the space is flat and its continuation elsewhere.

    Arguments:
        space: the space of the conversions; a flow fills its own in.

    Source: Flow Matching on General Geometries, Chen and Lipman 2023, arXiv 2302.03660.
    """

    def __init__(self, space: Space | None = None) -> None:
        self.space = space

    def on(self, space: Space) -> Path:
        if self.space is not None and not self.space.same(space):
            raise UserError(f"the path lives on {self.space!r}, the flow on {space!r}: give the space to the flow alone")
        return self if self.space is not None else Geodesic(space)

    def __call__(self, pair: Pair, t: Tensor, space: Space) -> Bridge:
        xt, ut = space.geodesic(pair.x0, pair.x1, expand_time(t, pair.x1).to(pair.x1.dtype))
        return Bridge(pair, t, xt, ut)

    def endpoint_from_velocity(self, v: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self._space.exp(xt, (1 - expand_time(t, xt).to(xt.dtype)) * v)

    def velocity_from_endpoint(self, x1: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return self._space.log(xt, x1) / (1 - expand_time(t, xt).to(xt.dtype))

    @property
    def _space(self) -> Space:
        return Euclidean() if self.space is None else self.space
