"""Linear layers that mix all features."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn

from sciflow.flows.layered import Layer

__all__ = ["LUMixing", "OrthogonalMixing"]


class LUMixing(Layer):
    r"""y = L U x with unit lower L and upper U whose diagonal is exp(s): log |det| = sum s. Starts as the identity.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018, arXiv 1807.03039.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.factors = nn.Parameter(torch.zeros(features, features))  # L below the diagonal, U above it
        self.log_scale = nn.Parameter(torch.zeros(features))

    def extra_repr(self) -> str:
        return f"{self.features}"

    def _triangles(self, x: Tensor) -> tuple[Tensor, Tensor]:
        factors, log_scale = self.factors.to(x.dtype), self.log_scale.to(x.dtype)
        lower = factors.tril(-1) + torch.eye(self.features, dtype=x.dtype, device=x.device)
        return lower, factors.triu(1) + torch.diag(log_scale.exp())

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        with _full_precision(x):
            lower, upper = self._triangles(x)
            return lower @ (upper @ x), self.log_scale.sum().to(x.dtype).expand(x.shape[1])

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        with _full_precision(z):
            lower, upper = self._triangles(z)
            half = torch.linalg.solve_triangular(lower, z, upper=False, unitriangular=True)
            x = torch.linalg.solve_triangular(upper, half, upper=True)
            return x, -self.log_scale.sum().to(z.dtype).expand(z.shape[1])


class OrthogonalMixing(Layer):
    r"""y = exp(A - A^T) x, a rotation: log |det| = 0. Starts as the identity."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features
        self.generator = nn.Parameter(torch.zeros(features, features))

    def extra_repr(self) -> str:
        return f"{self.features}"

    def _rotation(self, x: Tensor) -> Tensor:
        generator = self.generator.to(x.dtype)
        return torch.linalg.matrix_exp(generator - generator.T)

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        with _full_precision(x):
            return self._rotation(x) @ x, x.new_zeros(x.shape[1])

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        with _full_precision(z):
            return self._rotation(z).T @ z, z.new_zeros(z.shape[1])


def _full_precision(x: Tensor) -> AbstractContextManager:
    """These products are small and their errors would add up in the log-density: no autocast."""
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)
