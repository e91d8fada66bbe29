"""Soft data consistency after the flow: the minimum it is said to be, and what it leaves alone."""

from __future__ import annotations

from typing import Any

import torch
from sciflow_mri.model.null_space import LineCoordinates, soft_consistency
from sciflow_mri.physics.fourier import to_kspace
from sciflow_mri.physics.sense import Sense
from torch import Tensor

from sciflow.posterior.operators import Dense


def test_soft_consistency_is_the_minimum() -> None:
    """Against the normal equations with a dense operator and rows of their own spread."""
    matrix = torch.randn(20, 32, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    class Measure(Dense):  # images as pairs, flattened
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1))

        def adjoint(self, y: Tensor) -> Tensor:
            return super().adjoint(y).view(-1, 2, 4, 4)

        def normal_solve(self, r: Tensor, shift: Any) -> Tensor:
            eye = torch.eye(32, dtype=r.dtype)
            wide = torch.as_tensor(shift, dtype=r.dtype).expand(len(r))
            solved = [torch.linalg.solve(matrix.T @ matrix + c * eye, row.flatten()) for row, c in zip(r, wide, strict=True)]
            return torch.stack(solved).view(-1, 2, 4, 4)

    sense, u = Measure(matrix), torch.randn(3, 2, 4, 4, dtype=torch.float64)
    y = torch.randn(1, 20, dtype=torch.float64)
    for spread in (0.3, torch.tensor([0.1, 0.3, 3.0])):
        x = soft_consistency(sense, y, u, spread).requires_grad_()
        r = torch.as_tensor(spread, dtype=torch.float64).expand(3)
        cost = (sense(x) - y).square().sum() + ((x - u).flatten(1).square().sum(1) / r**2).sum()
        (gradient,) = torch.autograd.grad(cost, x)
        assert gradient.abs().max() < 1e-9
    assert (soft_consistency(sense, y, u, 1e-6) - u).abs().max() < 1e-9


def test_one_flat_coil_averages_measured_lines_and_leaves_the_others() -> None:
    """k = (y / sigma^2 + k_u / r^2) / (1 / sigma^2 + 1 / r^2) on measured lines; the drawn ones stay as they were drawn."""
    torch.manual_seed(0)
    mask, sigma, spread = [True, False, True, True, False], 0.2, 0.5
    sense = Sense(torch.ones(1, 5, 4, dtype=torch.complex128), mask, torch.full((1, 5), sigma**2, dtype=torch.float64))
    u = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    y = torch.randn(1, 1, 3, 4, dtype=torch.complex128)
    x = soft_consistency(sense, sense.whiten(y), u, spread)
    before, after = (to_kspace(torch.complex(image[:, 0], image[:, 1])) for image in (u, x))
    sampled = torch.tensor(mask)
    expected = (y[:, 0] / sigma**2 + before[:, sampled] / spread**2) / (1 / sigma**2 + 1 / spread**2)
    assert (after[:, sampled] - expected).abs().max() < 1e-12
    assert (after[:, ~sampled] - before[:, ~sampled]).abs().max() < 1e-12
    coordinates = LineCoordinates(mask)
    assert (coordinates.coordinates(x) - coordinates.coordinates(u)).abs().max() < 1e-12
