"""Moves that separate particles which resampling made copies of one another."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.moves import hamiltonian, in_blocks, rescaled, start_state
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.drift import drift_figures
from sciflow.posterior.samplers.smc_population import Population

__all__ = ["rejuvenated"]

_MOVES, _LEAPFROG = 30, 8


def rejuvenated(
    problem: Problem, x: Tensor, population: Population, moves: int | None, randomness: Randomness, chunk: int
) -> tuple[Tensor, Tensor | None, dict[str, float]]:
    """x after Hamiltonian moves on log p~, log p~(x), and figures.

    Modes differ in width, so the scale is that within families (particles of one ancestor), and each row has its own random
    factor between 1/2 and 2. The step adapts in the first third of the moves; the drift is that over the others. Without the
    prior's density nothing moves.
    """
    try:
        problem.prior.need_density()
    except UserError:
        if moves:
            raise
        return x, None, {"moves": 0.0}
    count = _MOVES if moves is None else moves
    if not count:
        with torch.no_grad():
            return x, in_blocks(problem.log_prob, x, chunk), {"moves": 0.0}

    def density(x: Tensor) -> tuple[Tensor, Tensor]:
        return in_blocks(problem.value_and_gradient, x, chunk)

    start = state = start_state(density, x)
    scale = _within(x, population)
    step = torch.tensor(0.5, dtype=x.dtype, device=x.device)
    tuning = max(1, count // 3)
    accepted = torch.zeros(len(x), dtype=torch.bool, device=x.device)
    rate = []
    for k in range(count):
        factor = 2 ** (2 * randomness.uniform(len(x), 1)[:, 0] - 1)
        moved = hamiltonian(density, state, step * factor.to(x.dtype), randomness, leapfrog=_LEAPFROG, scale=scale)
        state, accepted = moved.state, accepted | moved.accepted
        mean = moved.acceptance.mean()
        if k < tuning:
            step = rescaled(step, mean, 0.7, 1.5)
            tuned = state
        else:
            rate.append(mean)
    figures = {
        "moves": float(count), "acceptance": float(torch.stack(rate).mean()) if rate else float(mean),
        "never_moved": 1 - float(accepted.double().mean()),
        "displacement": float(((state.x - start.x) / scale).square().mean().sqrt()),
        **(drift_figures(tuned, state, population.final_weight(), population.family()) if rate else {}),
    }  # fmt: skip
    return state.x, state.log_prob, figures


def _within(x: Tensor, population: Population) -> Tensor:
    """Root mean square deviation (*event) from the mean of the family; the whole's where families are single."""
    _, number = population.family().unique(return_inverse=True)
    flat = x.reshape(len(x), -1)
    size = torch.zeros(int(number.max()) + 1, dtype=x.dtype, device=x.device).index_add_(0, number, torch.ones_like(flat[:, 0]))
    mean = torch.zeros(len(size), flat.shape[1], dtype=x.dtype, device=x.device).index_add_(0, number, flat) / size[:, None]
    freedom = len(x) - len(size)
    if freedom < 10:
        return x.std(0)
    within = ((flat - mean[number]).square().sum(0) / freedom).sqrt().reshape(x.shape[1:])
    return torch.where(within > 0, within, x.std(0).clamp_min(1e-6))
