"""Normal noise, independent or correlated."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform
from sciflow.posterior.constants import constant
from sciflow.posterior.likelihoods.base import AdditiveNoise, Likelihood

__all__ = ["CorrelatedGaussian", "Gaussian"]


class Gaussian(AdditiveNoise):
    r"""y = prediction + e with independent normal e of standard deviation `sigma`.

    Complex data have independent real and imaginary parts of standard deviation sigma *each*.

    Arguments:
        sigma: a number > 0, or a tensor that broadcasts against the data.

    >>> Gaussian(2.0).log_prob(torch.zeros(3), torch.zeros(1, 3))
    tensor([-4.8363])
    """

    sigma: Tensor

    def __init__(self, sigma: Any) -> None:
        super().__init__(sigma, "sigma")

    def standard_terms(self, z: Tensor) -> Tensor:
        return -0.5 * z.square() - 0.5 * math.log(2 * math.pi)

    def standard_noise(self, uniform: Tensor) -> Tensor:
        return normal_from_uniform(uniform[..., 0])


class CorrelatedGaussian(Likelihood):
    r"""y = prediction + e with e ~ N(0, C), over the data as one vector. Real data; complex ones become real by `ToPairs`.

    Arguments:
        covariance: C (n, n), symmetric and positive definite, n the number of data in row-major order.

    Raises `UserError` if it is not.

    >>> noise = CorrelatedGaussian([[1.0, 0.5], [0.5, 1.0]])
    >>> noise.log_prob(torch.zeros(2), torch.zeros(1, 2))
    tensor([-1.6940])
    """

    covariance: Tensor
    _root: Tensor

    def __init__(self, covariance: Any) -> None:
        super().__init__()
        value = constant(self, "covariance", covariance, torch.float64)
        if value.dim() != 2 or value.shape[0] != value.shape[1]:
            raise UserError(f"CorrelatedGaussian: the covariance has shape {tuple(value.shape)}, expected (n, n)")
        if not bool(((value - value.T).abs() <= 1e-8 * value.diagonal().abs().amax()).all()):
            raise UserError("CorrelatedGaussian: the covariance is not symmetric (or not finite)")
        root, failed = torch.linalg.cholesky_ex(value)
        if bool(failed):
            least = float(torch.linalg.eigvalsh(value)[0])
            raise UserError(f"CorrelatedGaussian: the covariance is not positive definite (smallest eigenvalue {least:.3g})")
        self.register_buffer("covariance", value)
        self.register_buffer("_root", root, persistent=False)

    def log_prob(self, y: Tensor, prediction: Tensor) -> Tensor:
        residual = (prediction - y).reshape(len(prediction), -1)
        self._fitting(residual)
        bad = (~residual.isfinite()).any(-1)
        root = self._root.to(residual.dtype)
        safe = torch.where(bad.unsqueeze(-1), 0, residual)
        z = torch.linalg.solve_triangular(root, safe.T, upper=False).T
        value = -0.5 * z.square().sum(-1) - root.diagonal().log().sum() - 0.5 * len(root) * math.log(2 * math.pi)
        return torch.where(residual.isnan().any(-1), torch.nan, torch.where(bad, -torch.inf, value))

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        self._fitting(prediction.reshape(len(prediction), -1))
        z = normal_from_uniform(uniform) @ self._root.to(uniform.dtype).T
        return prediction + z.to(prediction.dtype).reshape(prediction.shape)

    def check(self, y: Tensor) -> None:
        if y.is_complex() or y.numel() != len(self._root):
            kind = "complex" if y.is_complex() else "real"
            size = len(self._root)
            raise UserError(
                f"CorrelatedGaussian: the covariance is {size} x {size}, the data are {kind} {tuple(y.shape)}: "
                f"expected {size} real ones"
            )

    def _fitting(self, rows: Tensor) -> None:
        if rows.is_complex() or rows.shape[-1] != len(self._root):
            raise ValueError(
                f"CorrelatedGaussian: rows of shape {tuple(rows.shape)}{' (complex)' if rows.is_complex() else ''}, expected "
                f"(rows, {len(self._root)}) real ones"
            )
