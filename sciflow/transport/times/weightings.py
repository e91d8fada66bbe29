"""Weights of the loss along the path, as data: a formula in the coefficients of an affine path."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.part import Part
from sciflow.transport.paths.base import AffinePath, Path

__all__ = ["EndpointError", "LikelihoodWeight", "MinSNR", "NetworkError", "NoiseError", "NoisePower", "Weighting"]


class Weighting(Part, ABC):
    r"""(t (B,), path) -> weights (B,) of squared velocity errors |v - u_t|^2, on x_t = a x_1 + s x_0 with w = s a' - a s' > 0.

    An error dv of the velocity is an error s dv / w of the endpoint and a dv / w of the noise. A weight changes what a network
    of finite size gets right first, not the minimiser.

    Raises `UserError` for a path that is not affine.
    """

    def __call__(self, t: Tensor, path: Path) -> Tensor:
        if not isinstance(path, AffinePath):
            raise UserError(
                f"{self!r} needs the coefficients of an affine path, {path!r} has none: use LogitNormal or PowerLaw times"
            )
        a, s, da, ds = path.coefficients(t)
        return self.formula(a, s, s * da - a * ds)

    @abstractmethod
    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        """The weight from the coefficients at t, all (B,)."""


class NoisePower(Weighting):
    """s^-power: emphasis on the end of the path, with s not below `floor`."""

    def __init__(self, power: float = 2.0, *, floor: float = 0.05) -> None:
        if floor <= 0:
            raise UserError(f"floor={floor}: a positive floor keeps the weight finite at t = 1")
        self.power, self.floor = power, floor

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return s.clamp_min(self.floor) ** -self.power


class EndpointError(Weighting):
    """s^2 / w^2: the loss of a network that predicts the endpoint."""

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return (s / w).square()


class NoiseError(Weighting):
    """a^2 / w^2: the loss of a network that predicts the noise."""

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return (a / w).square()


class MinSNR(Weighting):
    """min(a^2 / s^2, gamma) on the error of the endpoint: min(a^2, gamma s^2) / w^2 on that of the velocity.

    Source: Efficient Diffusion Training via Min-SNR Weighting Strategy, Hang et al. 2023, arXiv 2303.09556 (gamma = 5).
    """

    def __init__(self, gamma: float = 5.0) -> None:
        if gamma <= 0:
            raise UserError(f"gamma={gamma}: the largest signal-to-noise ratio must be positive")
        self.gamma = gamma

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return a.square().minimum(self.gamma * s.square()) / w.square()


class LikelihoodWeight(Weighting):
    r"""a / (s w), for which the mean squared error is the evidence bound of the diffusion with the same marginals:

        KL(p_data | p_model) <= \int a / (s w) E|v(x_t, t) - u*_t(x_t)|^2 dt,

    for a standard normal base and an exact end of the path; half the rate of the signal-to-noise ratio times the squared error
    of the endpoint. t / (1 - t) on the linear path. s is not below `floor`, where the bound is cut.

    Sources: Maximum Likelihood Training of Score-Based Diffusion Models, Song et al. 2021, arXiv 2101.09258; Variational
    Diffusion Models, Kingma et al. 2021, arXiv 2107.00630.
    """

    def __init__(self, *, floor: float = 1e-4) -> None:
        if floor <= 0:
            raise UserError(f"floor={floor}: a positive floor keeps the weight finite at t = 1")
        self.floor = floor

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        return a / (s.clamp_min(self.floor) * w)


class NetworkError(Weighting):
    r"""n^2 / (d^2 w^2), n^2 = d^2 a^2 + s^2: the loss of the network F inside `Preconditioned`, whose targets have variance 1.

    The plain loss gives F the weight d^2 w^2 / n^2, which for data of standard deviation d < 1 leaves d^2 of it for the largest
    noise on the linear path: .12 for d = .35.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364.
    """

    def __init__(self, data_scale: float = 1.0) -> None:
        if not 0 < data_scale < math.inf:
            raise UserError(f"data_scale={data_scale}: give the standard deviation of the data, > 0")
        self.data_scale = float(data_scale)

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        d = self.data_scale
        return (d**2 * a.square() + s.square()) / (d * w).square()
