"""Linear maps of vectors whose determinant and inverse are cheap."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.transforms.base import Transform

__all__ = ["LU", "Orthogonal"]


class LU(Transform):
    r"""y = L U x on the last axis, ladj = sum_i log |U_ii|.

    Arguments:
        matrix: (D, D); its part below the diagonal is that of the unit lower triangle L, the rest is U. No diagonal
            element may be 0. The identity matrix gives the identity.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018, arXiv 1807.03039.

    >>> LU(torch.tensor([[2.0, 1.0], [0.5, 1.0]])).call_and_ladj(torch.tensor([1.0, 1.0]))
    (tensor([3.0000, 2.5000]), tensor(0.6931))
    """

    event_dim = 1

    def __init__(self, matrix: Tensor) -> None:
        if matrix.dim() != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"the matrix has shape {tuple(matrix.shape)}, expected (D, D)")
        self.matrix = matrix

    def _triangles(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        matrix = self.matrix.to(x.dtype)
        identity = torch.eye(len(matrix), dtype=x.dtype, device=x.device)
        ladj = torch.log(matrix.diagonal().abs()).sum().expand(x.shape[:-1])
        return matrix.tril(-1) + identity, matrix.triu(), ladj

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, ladj = self._triangles(x)
        return x @ upper.T @ lower.T, ladj

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper, ladj = self._triangles(y)
        rows = y.reshape(-1, y.shape[-1])
        half = torch.linalg.solve_triangular(lower.T, rows, upper=True, left=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper.T, half, upper=False, left=False).reshape(y.shape), -ladj

    def __repr__(self) -> str:
        return f"LU({len(self.matrix)})"


class Orthogonal(Transform):
    r"""y = H_1 H_2 ... H_R x with the reflections H_r = 1 - 2 v_r v_r^T / |v_r|^2; ladj = 0.

    D vectors reach every orthogonal matrix, an even number of them rotations only.

    Arguments:
        vectors: (R, D), none of them 0.

    Source: Improving Variational Auto-Encoders using Householder Flow, Tomczak and Welling 2016, arXiv 1611.09630.

    >>> Orthogonal(torch.tensor([[1.0, -1.0]]))(torch.tensor([3.0, 5.0]))
    tensor([5., 3.])
    """

    event_dim = 1

    def __init__(self, vectors: Tensor) -> None:
        if vectors.dim() != 2:
            raise ValueError(f"the vectors have shape {tuple(vectors.shape)}, expected (R, D)")
        self.vectors = vectors

    def _reflect(self, x: Tensor, vectors: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        ladj = x.new_zeros(x.shape[:-1])
        for vector in vectors:
            v = vector.to(x.dtype)
            x = x - (x @ v).unsqueeze(-1) * (v * (2 / (v * v).sum()))
        return x, ladj

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self._reflect(x, self.vectors.unbind()[::-1])

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self._reflect(y, self.vectors.unbind())

    def __repr__(self) -> str:
        return f"Orthogonal({self.vectors.shape[1]}, reflections={self.vectors.shape[0]})"
