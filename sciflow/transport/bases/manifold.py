"""Where noise begins on a manifold."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.distributions import Base, DiagonalNormal, Product
from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform
from sciflow.shapes import shape_of
from sciflow.transport.spaces.base import Space
from sciflow.transport.spaces.even import log_sinhc, tanhc
from sciflow.transport.spaces.hyperbolic import HyperbolicBall
from sciflow.transport.spaces.product import ProductSpace

__all__ = ["UniformOn", "WrappedNormal", "base_on"]


class UniformOn(Base):
    r"""p(z) = 1 / volume at every point of the space, 0 elsewhere, with respect to the Riemannian volume.

    Arguments:
        space: of finite volume: torus, sphere, rotations, simplex, box, or a product of these.
        event_shape: the last axis holds the coordinates of a point, the axes before it count points.

    Raises `UserError` if the volume is infinite.

    >>> from sciflow.transport.spaces import Sphere
    >>> base = UniformOn(Sphere(), 3)
    >>> base.uniforms, base.log_prob(torch.tensor([[0.0, 0.0, 1.0]]))  # 1 / (4 pi)
    (3, tensor([-2.5310]))
    """

    def __init__(self, space: Space, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        self.space = space
        self.event_shape = shape_of(event_shape)
        self._size, self._points = self.event_shape[-1], math.prod(self.event_shape[:-1])
        self._uniforms, self._log_volume = space.uniforms(self._size), space.log_volume(self._size)

    @property
    def uniforms(self) -> int:
        return self._points * self._uniforms

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        uniform = uniform.reshape(-1, *self.event_shape[:-1], self._uniforms)
        z = self.space.from_uniform(uniform, self._size)
        return z if mask is None else torch.where(mask, z, 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        if mask is None:
            density = z.new_full((len(z),), -self._points * self._log_volume)
        else:
            density = -self.space.present_log_volume(mask).reshape(len(z), -1).sum(1).to(z.dtype)
        return torch.where(self.space.contains(z, mask), density, -torch.inf)

    def extra_repr(self) -> str:
        return f"space={self.space!r}, event_shape={tuple(self.event_shape)}"


class WrappedNormal(Base):
    r"""x = exp_0(v) on the hyperbolic ball, v normal in the tangent space at 0 with standard deviation `scale` in the metric.

    With r the distance from 0 and d the dimension, with respect to the Riemannian volume,

        log p(x) = log N(r; 0, scale^2 1_d) - (d - 1) log(sinh(sqrt c r) / (sqrt c r)).

    Source: A Wrapped Normal Distribution on Hyperbolic Space, Nagano et al. 2019, arXiv 1902.02992.

    >>> from sciflow.transport.spaces import HyperbolicBall
    >>> WrappedNormal(HyperbolicBall(), 2).log_prob(torch.zeros(1, 2))  # 1 / (2 pi)
    tensor([-1.8379])
    """

    def __init__(self, space: HyperbolicBall, event_shape: int | tuple[int, ...], scale: float = 1.0) -> None:
        super().__init__()
        if not 0 < scale < math.inf:
            raise UserError(f"scale={scale!r}: give a positive number, in units of the metric")
        self.space, self.scale = space, float(scale)
        self.event_shape = shape_of(event_shape)

    @property
    def uniforms(self) -> int:
        return math.prod(self.event_shape)

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        v = self.scale * normal_from_uniform(uniform).reshape(-1, *self.event_shape)
        v = v if mask is None else v * mask
        # exp_0 of v/2: the metric at 0 is 4 times the Euclidean one
        return self.space.project(tanhc(self.space.curvature * v.square().sum(-1, keepdim=True) / 4) * v / 2)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        v = 2 * self.space.log(torch.zeros_like(z), z)
        square, size = v.square().sum(-1), z.shape[-1]
        density = -0.5 * square / self.scale**2 - size * math.log(self.scale * math.sqrt(2 * math.pi))
        density = density - (size - 1) * log_sinhc(self.space.curvature * square)
        if mask is not None:
            density = torch.where(mask.any(-1), density, 0)
        return torch.where(self.space.contains(z, mask), density.reshape(len(z), -1).sum(1), -torch.inf)

    def extra_repr(self) -> str:
        return f"space={self.space!r}, event_shape={tuple(self.event_shape)}, scale={self.scale}"


def base_on(space: Space, event_shape: int | tuple[int, ...]) -> Base:
    """The base a flow on the space has unless it is given another: uniform where the volume is finite, else normal.

    Raises `UserError` where it is not clear which.

    >>> from sciflow.transport.spaces import Euclidean, Torus
    >>> base_on(ProductSpace([Euclidean(), Torus()], [2, 1]), 3)
    Product(
      features=[[0, 1], [2]]
      (bases): ModuleList(
        (0): DiagonalNormal()
        (1): UniformOn(space=Torus(period=6.283185307179586), event_shape=(1,))
      )
    )
    """
    shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
    if space.euclidean:
        return DiagonalNormal(shape)
    if isinstance(space, HyperbolicBall):
        return WrappedNormal(space, shape)
    if not isinstance(space, ProductSpace) or len(shape) > 1:
        return UniformOn(space, shape)
    space.width(shape[0])
    starts = [sum(space.sizes[:number]) for number in range(len(space.sizes))]
    groups = [list(range(start, start + size)) for start, size in zip(starts, space.sizes, strict=True)]
    return Product([base_on(part, size) for part, size in zip(space.spaces, space.sizes, strict=True)], groups)
