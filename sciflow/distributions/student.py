"""Student t bases for heavy tails."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.distributions.base import Base
from sciflow.distributions.tails import tail_index
from sciflow.errors import UserError

__all__ = ["StudentT"]


class StudentT(Base):
    r"""Independent Student t features with degrees of freedom nu_j: p(z_j) ~ |z_j|^-(nu_j + 1) in the tails.

        log p(z) = sum_j log G((nu_j+1)/2) - log G(nu_j/2) - log(pi nu_j)/2 - (nu_j+1)/2 log(1 + z_j^2/nu_j)

    Infinite degrees of freedom give a standard normal. With splines that are the identity in the tails and no mixing
    between the features, every margin of a flow keeps the tail of its base: marginal tail-adaptive flows.

    A draw takes two uniforms per feature: t = sqrt(nu (u^(-2/nu) - 1)) cos(2 pi v), whose limit nu -> infinity is
    the Box-Muller normal.

    Arguments:
        features: number of features.
        degrees: of freedom, one number for all features or one each; `math.inf` for a normal.
        trainable: learn the finite ones (as log nu). The infinite ones stay infinite.

    Raises `UserError` if a number of degrees is not positive.

    Sources: Marginal Tail-Adaptive Normalizing Flows, Laszkiewicz et al. 2022, arXiv 2206.10311; Polar generation of
    random variates with the t-distribution, Bailey 1994, Mathematics of Computation 62, 779.

    >>> StudentT(2, [1.0, math.inf]).log_prob(torch.zeros(1, 2))
    tensor([-2.0637])
    """

    heavy_tailed = True
    finite: Tensor
    log_degrees: Tensor

    def __init__(self, features: int, degrees: float | Sequence[float] = 5.0, *, trainable: bool = False) -> None:
        super().__init__()
        values = [float(degrees)] * features if isinstance(degrees, (int, float)) else [float(value) for value in degrees]
        if len(values) != features or not all(value > 0 for value in values):
            raise UserError(f"{features} features need positive degrees of freedom, one or {features} of them, got {degrees}")
        self.event_shape = torch.Size((features,))
        finite = torch.tensor([math.isfinite(value) for value in values])
        logs = [math.log(value) if math.isfinite(value) else 0.0 for value in values]
        self.trainable = trainable
        self.register_buffer("finite", finite)
        if trainable:
            self.log_degrees = nn.Parameter(torch.tensor(logs))
        else:
            self.register_buffer("log_degrees", torch.tensor(logs, dtype=torch.float64))

    @classmethod
    def from_data(cls, x: Tensor, *, trainable: bool = False) -> StudentT:
        """Degrees of freedom from the tails of data (N, D): see `tail_index`; light tails get a normal."""
        base = cls(x.shape[1], trainable=trainable)
        index = tail_index(x)
        with torch.no_grad():
            base.finite.copy_(index.isfinite())
            base.log_degrees.copy_(torch.where(index.isfinite(), index, 1.0).log())
        return base

    @property
    def degrees(self) -> Tensor:
        """Degrees of freedom of each feature (D,), infinite for the normal ones."""
        return torch.where(self.finite, self.log_degrees.exp(), torch.inf)

    @property
    def uniforms(self) -> int:
        return 2 * self.event_shape[0]

    def extra_repr(self) -> str:
        numbers = "" if self.log_degrees.is_meta else ", ".join(f"{value:.3g}" for value in self.degrees.tolist())
        return f"degrees=[{numbers}], trainable={self.trainable}"

    def _finite_degrees(self) -> Tensor:
        # float64, because the difference of the gamma functions cancels; 1 where infinite, to keep gradients clean
        return torch.where(self.finite, self.log_degrees.double(), 0).exp()

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        features = self.event_shape[0]
        u, v = uniform[:, :features], uniform[:, features:]
        degrees, energy = self._finite_degrees(), -2 * torch.log(u)
        # r^2 = nu (exp(energy / nu) - 1) written as a product, so that huge draws of tiny nu stay finite
        radius = torch.sqrt(-degrees * torch.expm1(-energy / degrees)) * torch.exp(energy / (2 * degrees))
        z = torch.where(self.finite, radius, energy.sqrt()) * torch.cos(2 * torch.pi * v)
        return z if mask is None else torch.where(mask, z, 0)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        degrees = self._finite_degrees()
        constant = torch.lgamma((degrees + 1) / 2) - torch.lgamma(degrees / 2) - torch.log(torch.pi * degrees) / 2
        scaled = z / degrees.sqrt().to(z.dtype)
        far = scaled.abs() > 1e6  # where the square might overflow or swallow the 1
        near = torch.log1p(torch.where(far, 0, scaled).square())
        growth = torch.where(far, 2 * torch.log(torch.where(far, scaled.abs(), 1)), near)
        heavy = constant.to(z.dtype) - ((degrees + 1) / 2).to(z.dtype) * growth
        light = (torch.where(self.finite, 0, z).square() + math.log(2 * math.pi)) * -0.5
        density = torch.where(self.finite, heavy, light)
        if mask is not None:
            density = torch.where(mask, density, 0)
        return density.sum(-1)
