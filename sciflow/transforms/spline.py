"""Rational-quadratic splines on the line and on the circle."""

from __future__ import annotations

from torch import Tensor

from sciflow.transforms.base import Transform
from sciflow.transforms.spline_formula import bins_of
from sciflow.transforms.spline_kernel import rational_quadratic

__all__ = ["Spline"]


class Spline(Transform):
    r"""A monotone rational-quadratic spline of raw parameters, elementwise; see `rational_quadratic` for its bounds.

    On the line it maps [-bound, bound] to itself and is exactly the identity outside. With circular=True it maps the
    circle to itself: x is taken modulo 2 bound into [-bound, bound), the slope is continuous across the seam and the
    seam stays where it is.

    Arguments:
        parameters: raw numbers, rows first: (3K-1, *shape) on the line, (3K, *shape) on the circle, where shape
            broadcasts to that of x. All zeros give the identity.
        bound: half width of the box, or half of the period.
        circular: on the circle instead of on the line.
        compiled: with bodies built by `torch.compile`.

    >>> import torch
    >>> transform = Spline(torch.zeros(8, 2), bound=3.0)
    >>> transform
    Spline((2,), bins=3, bound=3.0)
    >>> transform(torch.tensor([1.0, -7.0]))
    tensor([ 1., -7.])
    """

    def __init__(self, parameters: Tensor, bound: float, *, circular: bool = False, compiled: bool = False) -> None:
        self.bins = bins_of(parameters, circular)
        self.parameters, self.bound, self.circular, self.compiled = parameters, float(bound), circular, compiled

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(x, inverse=False)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._map(y, inverse=True)

    def _map(self, x: Tensor, *, inverse: bool) -> tuple[Tensor, Tensor]:
        rows, *shape = self.parameters.shape
        parameters = self.parameters.view(rows, *[1] * (x.dim() - len(shape)), *shape).expand(rows, *x.shape)
        return rational_quadratic(
            x, parameters, bound=self.bound, circular=self.circular, inverse=inverse, compiled=self.compiled
        )

    def __repr__(self) -> str:
        circle = ", circular=True" if self.circular else ""
        return f"Spline({tuple(self.parameters.shape[1:])}, bins={self.bins}, bound={self.bound}{circle})"
