"""Products of double wells: 2^(D/2) modes whose masses and normaliser are known by quadrature."""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.noise import normal_from_uniform
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.target import Energy

__all__ = ["ManyWell"]

_EDGE, _POINTS = 5.0, 200_001  # exp(-E) is below 1e-200 at the edge


class ManyWell(Energy):
    r"""E(x) = sum over pairs (a, b) = (x_0, x_1), (x_2, x_3), ... of a^4 - 6 a^2 - a / 2 + b^2 / 2.

    Each a sits near -1.7 or 1.8; a barrier of 9 units is between them. Normaliser, masses and draws come from a fine
    quadrature of the one-dimensional factor.

    Arguments:
        features: D, even.

    Attributes: `log_evidence`, `right_mass`: the probability that a > 0, the same for each pair.

    Source: Flow Annealed Importance Sampling Bootstrap, Midgley et al. 2022, arXiv 2208.01893; the double well: Boltzmann
    generators, Noé et al. 2019, arXiv 1812.01729.

    >>> target = ManyWell(32)
    >>> round(target.log_evidence, 3), round(target.right_mass, 3)
    (164.696, 0.844)
    """

    def __init__(self, features: int = 4, *, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu") -> None:
        if features < 2 or features % 2:
            raise UserError(f"features={features}: the wells come in pairs of coordinates, give an even number")
        super().__init__(many_well, features, dtype=dtype, device=device)

    @cached_property
    def _table(self) -> tuple[Tensor, Tensor]:
        grid = torch.linspace(-_EDGE, _EDGE, _POINTS, dtype=torch.float64)
        density = torch.exp(-_well(grid))
        return grid, torch.cat([torch.zeros(1, dtype=torch.float64), torch.cumulative_trapezoid(density, grid)])

    @property
    def wells(self) -> int:
        """Number of pairs; there are 2^wells modes."""
        return self.features // 2

    @property
    def log_evidence(self) -> float:
        normal = 0.5 * torch.log(torch.tensor(2 * torch.pi, dtype=torch.float64))
        return float(self.wells * (self._table[1][-1].log() + normal))

    @property
    def right_mass(self) -> float:
        mass = self._table[1]
        return float(1 - mass[_POINTS // 2] / mass[-1])

    @property
    def mode_masses(self) -> Tensor:
        """Probabilities (2^wells,) of the modes, numbered as by `mode`."""
        sides = torch.arange(2**self.wells)[:, None] >> torch.arange(self.wells) & 1
        return torch.where(sides == 1, self.right_mass, 1 - self.right_mass).prod(1)

    def mode(self, x: Tensor) -> Tensor:
        """The number (B,) of the mode that x is in: bit k is 1 where well k is on the right."""
        return ((x[:, ::2] > 0).long() << torch.arange(self.wells, device=x.device)).sum(1)

    def draw(self, rows: int, randomness: Randomness) -> Tensor:
        """Exact draws (rows, D), by the inverse of the tabulated distribution function."""
        uniform = randomness.uniform(rows, self.features).cpu()
        grid, mass = self._table
        level = uniform[:, ::2].contiguous() * mass[-1]
        right = torch.searchsorted(mass, level).clamp(1, _POINTS - 1)
        share = (level - mass[right - 1]) / (mass[right] - mass[right - 1]).clamp_min(1e-300)
        x = torch.empty_like(uniform)
        x[:, ::2] = grid[right - 1] + share * (grid[right] - grid[right - 1])
        x[:, 1::2] = normal_from_uniform(uniform[:, 1::2])
        return x.to(self.dtype).to(self.device)

    def __repr__(self) -> str:
        return f"ManyWell({self.features})"


def many_well(x: Tensor) -> Tensor:
    """The energy (B,) of rows x (B, D)."""
    return _well(x[:, ::2]).sum(1) + 0.5 * x[:, 1::2].square().sum(1)


def _well(a: Tensor) -> Tensor:
    return a**4 - 6 * a.square() - 0.5 * a
