"""Noise with heavy tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.likelihoods.base import AdditiveNoise, positive, shown, standing

__all__ = ["Laplace", "Student"]


class Student(AdditiveNoise):
    r"""y = prediction + scale e with independent e of Student's distribution.

    Draws by the polar method e = sqrt(nu (u^{-2 / nu} - 1)) cos(2 pi v): Polar generation of random variates with the
    t-distribution, Bailey 1994, Mathematics of Computation 62.

    Arguments:
        scale: a number > 0, or a tensor that broadcasts against the data.
        freedom: degrees of freedom nu > 0, likewise.

    >>> Student(1.0, 3.0).log_prob(torch.zeros(1), torch.zeros(1, 1))
    tensor([-1.0009])
    """

    freedom: Tensor
    uniforms_each = 2

    def __init__(self, scale: Any, freedom: Any) -> None:
        super().__init__(scale)
        self.register_buffer("freedom", positive(self, "freedom", freedom))

    def standard_terms(self, z: Tensor) -> Tensor:
        nu = self.freedom.double()  # large ones cancel in single precision
        nu = nu.unsqueeze(-1) if nu.dim() else nu
        t = z.double() / nu.sqrt()
        inner = t.abs() < 1
        # the square keeps its digits where it is small, the root does not overflow where it is large
        tail = torch.where(inner, 0.5 * torch.where(inner, t, 0).square().log1p(), torch.hypot(t, torch.ones_like(t)).log())
        return (_log_constant(nu) - (nu + 1) * tail).to(z.dtype)

    def standard_noise(self, uniform: Tensor) -> Tensor:
        nu = self.freedom.to(uniform.dtype)
        nu = nu.unsqueeze(-1) if nu.dim() else nu
        radius = (nu * torch.expm1(-2 / nu * uniform[..., 0].log())).sqrt()
        return radius * torch.cos(2 * math.pi * uniform[..., 1])

    def check(self, y: Tensor) -> None:
        super().check(y)
        standing(self, "freedom", self.freedom, y)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, freedom={shown(self.freedom)}"


def _log_constant(nu: Tensor) -> Tensor:
    """log of Gamma((nu + 1) / 2) / (Gamma(nu / 2) sqrt(nu pi)): by its series where the functions would cancel."""
    large = nu.clamp_min(1000.0)
    series = -0.5 * math.log(2 * math.pi) - (1 - 1 / (6 * large**2)) / (4 * large)  # the next term: 1 / (20 nu^5)
    exact = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu) - 0.5 * (nu * math.pi).log()
    return torch.where(nu > 1000, series, exact)


class Laplace(AdditiveNoise):
    """y = prediction + e with p(e) = exp(-|e| / scale) / (2 scale). At e = 0 the gradient is taken as 0.

    Arguments:
        scale: a number > 0, or a tensor that broadcasts against the data.

    >>> Laplace(1.0).log_prob(torch.zeros(1), torch.zeros(1, 1))
    tensor([-0.6931])
    """

    def __init__(self, scale: Any) -> None:
        super().__init__(scale)

    def standard_terms(self, z: Tensor) -> Tensor:
        return -z.abs() - math.log(2)

    def standard_noise(self, uniform: Tensor) -> Tensor:
        u = uniform[..., 0]
        return torch.where(u < 0.5, (2 * u).log(), -(2 * (1 - u)).log())
