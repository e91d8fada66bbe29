"""Noise with heavy tails."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.constants import matched
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
        nu = matched(self.freedom, z)
        nu = nu.unsqueeze(-1) if nu.dim() else nu
        constant = torch.lgamma(0.5 * (nu + 1)) - torch.lgamma(0.5 * nu) - 0.5 * (nu * math.pi).log()
        tail = torch.hypot(z / nu.sqrt(), torch.ones_like(z)).log()  # does not overflow where z^2 does
        return constant.to(z.dtype) - ((nu + 1) * tail).to(z.dtype)

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
