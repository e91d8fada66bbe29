"""Elementwise bijections whose parameters come from a network."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sciflow.transforms.spline_kernel import bent_rational_quadratic, rational_quadratic

__all__ = ["Affine", "Elementwise", "Spline"]


class Elementwise(ABC):
    """A bijection of every element of x (d, B) with `parameters` raw numbers each, (parameters, d, B).

    Returns the mapped elements and log |dy/dx|, both (d, B). Raw parameters 0 give the identity.
    """

    parameters: int
    circular: bool = False

    @abstractmethod
    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]: ...

    def bent(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        """The map, and d log |dy/dx| / dx (d, B) at fixed parameters, without graph."""
        x = x.view_as(x) if x.requires_grad else x.detach().requires_grad_()
        y, ladj = self(x, parameters, inverse=inverse)
        (found,) = torch.autograd.grad(ladj.sum(), x, retain_graph=True, allow_unused=True, materialize_grads=True)
        return y, ladj, found


class Affine(Elementwise):
    r"""y = x exp(s) + t with s = S tanh(raw / S), |s| < S = `log_scale`."""

    parameters = 2

    def __init__(self, log_scale: float) -> None:
        self.log_scale = log_scale

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        raw, shift = parameters[0], parameters[1]
        log_scale = self.log_scale * torch.tanh(raw / self.log_scale)
        if inverse:
            return (x - shift) * torch.exp(-log_scale), -log_scale
        return x * torch.exp(log_scale) + shift, log_scale

    def bent(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        return *self(x, parameters, inverse=inverse), torch.zeros_like(x)


class Spline(Elementwise):
    """A rational-quadratic spline on [-bound, bound], the identity outside; on the circle with a rotation after it.

    Sources: Neural Spline Flows, Durkan et al. 2019, arXiv 1906.04032; Normalizing Flows on Tori and Spheres,
    Rezende et al. 2020, arXiv 2002.02428.
    """

    def __init__(self, bins: int, bound: float, *, circular: bool = False, compiled: bool = False) -> None:
        self.bins, self.bound, self.circular, self.compiled = bins, bound, circular, compiled
        self.parameters = 3 * bins + 1 if circular else 3 * bins - 1

    def __call__(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor]:
        # an alias: parameters may depend on x, and derivatives by "x at fixed parameters" must not follow that path
        x = x.view_as(x)
        if not self.circular:
            return rational_quadratic(x, parameters, bound=self.bound, inverse=inverse, compiled=self.compiled)
        raw, shift = parameters[:-1], parameters[-1]
        start = self._wrap(x - shift if inverse else x)
        y, ladj = rational_quadratic(start, raw, bound=self.bound, circular=True, inverse=inverse, compiled=self.compiled)
        return (y if inverse else self._wrap(y + shift)), ladj

    def bent(self, x: Tensor, parameters: Tensor, *, inverse: bool = False) -> tuple[Tensor, Tensor, Tensor]:
        found = None
        if not self.circular and not self.compiled:
            found = bent_rational_quadratic(x.view_as(x), parameters, bound=self.bound, inverse=inverse)
        return super().bent(x, parameters, inverse=inverse) if found is None else found

    def _wrap(self, x: Tensor) -> Tensor:
        return torch.remainder(x + self.bound, 2 * self.bound) - self.bound
