"""The contract of a space: where points live and how they move. Its default is Euclidean."""

from __future__ import annotations

from abc import ABC

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.part import Part

__all__ = ["Euclidean", "Space"]


class Space(Part, ABC):
    r"""Rows of points x (B, *event) and tangent vectors v of the same (ambient) shape.

    A point lies along the last axis of the event; the axes before it count points: on the sphere S^2 an event of shape
    (N, 3) is N points. All methods but those that return one number per row also take points without a batch axis.

    Embedded manifolds use ambient coordinates; a velocity field is extended to V(x) = P(x) f(x) with the tangent projection
    P, and log-densities are with respect to the Riemannian volume. The divergence of V at x is

        div V = sum_i (P e_i)^T (dV/dx) e_i  +  correction(x, V(x)),

    with the correction v . grad log sqrt(det g) in charts whose metric is not induced by the ambient space.
    All maps are differentiable, keep dtype and device, and are finite, with finite gradients, at 0, at coinciding points
    and at the cut locus, where one of the shortest geodesics is chosen.

    Solvers add slopes up in ambient coordinates. A stage `x + h k` is therefore not a point of the space: the field is
    evaluated at the point that `fold` makes of it, and its velocity is turned back (`sciflow.transport.folded`). That is a
    smooth extension of the field which leaves the space invariant, so methods keep their order and an error estimate sees
    the increment before it is folded.
    """

    euclidean: bool = False  # addition and the Lebesgue measure of R^n are right here
    straight: bool = False  # geodesics are straight lines in these coordinates
    walls: bool = False  # the space ends somewhere: no mass may flow out
    mirrors: bool = False  # `step` may turn velocities round: the last slope of a step is not the first of the next one
    keeps_zero: bool = True  # an absent feature, 0, stays 0: masks are possible
    whole: bool = False  # the coordinates of a point mean nothing alone: a mask covers all of them or none

    def masked(self, mask: Tensor | None) -> Space:
        """The space of rows with absent features (mask False): differs where features depend on each other."""
        return self

    def project(self, x: Tensor) -> Tensor:
        """The nearest or equivalent point of the space."""
        return x

    def fold(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """The point that an ambient one stands for, and the factor that turns velocities there into velocities here."""
        return self.project(x), None

    def tangent(self, x: Tensor, v: Tensor) -> Tensor:
        """P(x) v; x need not lie on the space exactly."""
        return v

    def step(self, x: Tensor, increment: Tensor) -> Tensor:
        """The point reached from x by a small increment (ambient, as solvers add them up), back on the space."""
        return self.project(x + increment)

    def exp(self, x: Tensor, v: Tensor) -> Tensor:
        """The end of the geodesic from x with velocity v after unit time."""
        return x + v

    def log(self, x: Tensor, y: Tensor) -> Tensor:
        """The velocity of the shortest geodesic from x to y."""
        return y - x

    def shoot(self, x: Tensor, v: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Point and velocity at times t (B, 1, ...) of the geodesic that leaves x with velocity v at time 0."""
        return self.exp(x, t * v), v

    def geodesic(self, x0: Tensor, x1: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """Point and velocity at times t (B, 1, ...) of the geodesic that is at x0 at time 0 and at x1 at time 1."""
        return self.shoot(x0, self.log(x0, x1), t)

    def squared_norm(self, x: Tensor, v: Tensor) -> Tensor:
        """|v|^2 in the metric at x, (B,)."""
        return v.flatten(1).square().sum(1)

    def distance(self, x: Tensor, y: Tensor) -> Tensor:
        """Geodesic distance (B,); its gradient is 0 at coinciding points, where it has a kink."""
        square = self.squared_norm(x, self.log(x, y))
        apart = square > 0
        return torch.where(apart, torch.where(apart, square, 1).sqrt(), 0)

    def correction(self, x: Tensor, v: Tensor) -> Tensor:
        """v . grad log sqrt(det g) (B,); zero where the metric is that of the ambient space."""
        return v.new_zeros(v.shape[0])

    def inside(self, x: Tensor) -> Tensor:
        """Which points (..., size) belong to the space, up to rounding, (...) boolean."""
        return torch.isfinite(x).all(-1)

    def contains(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Which rows (B, *event) are points of the space, up to rounding, (B,) boolean. Absent points always are."""
        found = self.inside(x)
        if mask is not None:
            found = found | ~mask.any(-1)
        return found.flatten(1).all(1) if found.dim() > 1 else found

    def cut(self, mask: Tensor) -> Tensor:
        """Which points (...) a mask (..., size) cuts into pieces although they are `whole`."""
        return mask.any(-1) & ~mask.all(-1) if self.whole else torch.zeros_like(mask[..., 0])

    # What a network needs to know so that its field is smooth on the whole space.

    def width(self, size: int) -> int:
        """How many coordinates `embed` makes of `size`. Raises `UserError` if points cannot have that size."""
        return size

    def embed(self, x: Tensor) -> Tensor:
        """Points (..., size) in coordinates (..., width(size)) that equivalent points share."""
        return x

    def pullback(self, x: Tensor, u: Tensor) -> Tensor:
        """A tangent vector (..., size) from what a network says in embedded coordinates u (..., width(size))."""
        return self.tangent(x, u)

    def embed_mask(self, mask: Tensor) -> Tensor:
        """Which embedded coordinates (..., width(size)) belong to present features (..., size)."""
        return mask

    # The uniform distribution, where the volume is finite.

    def uniforms(self, size: int) -> int:
        """How many uniforms in (0, 1) a uniformly distributed point of `size` coordinates takes."""
        raise UserError(f"{self!r} has no uniform distribution, its volume is infinite: give a base")

    def from_uniform(self, uniform: Tensor, size: int) -> Tensor:
        """Uniformly distributed points (..., size) from float64 uniforms (..., uniforms(size))."""
        raise UserError(f"{self!r} has no uniform distribution, its volume is infinite: give a base")

    def log_volume(self, size: int) -> float:
        """Logarithm of the Riemannian volume that a point of `size` coordinates ranges over."""
        raise UserError(f"{self!r} has an infinite volume")

    def present_log_volume(self, mask: Tensor) -> Tensor:
        """The same (...) of what is present of points (..., size), in float64."""
        return mask.any(-1).double() * self.log_volume(mask.shape[-1])


class Euclidean(Space):
    """R^n."""

    euclidean = True
    straight = True
