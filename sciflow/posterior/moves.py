"""Reversible moves of a batch of chains: random walk, Langevin, Hamiltonian; each row accepts for itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.posterior.randomness import Randomness

__all__ = ["Density", "Moved", "State", "hamiltonian", "in_blocks", "langevin", "random_walk", "rescaled", "start_state"]

Density = Callable[[Tensor], tuple[Tensor, Tensor]]  # x (B, *event) -> log p~ (B,), its gradient (B, *event), both detached

_ALIGNED = 64


class State(NamedTuple):
    """Where chains are: x (B, *event), log p~ (B,), and its gradient where the move needs it."""

    x: Tensor
    log_prob: Tensor
    gradient: Tensor | None = None

    def chosen(self, where: Tensor, other: State) -> State:
        """Rows of `self` where `where` (B,) is true, else of `other`."""
        wide = where.reshape(-1, *[1] * (self.x.dim() - 1))
        gradient = None
        if self.gradient is not None and other.gradient is not None:
            gradient = torch.where(wide, self.gradient, other.gradient)
        return State(torch.where(wide, self.x, other.x), torch.where(where, self.log_prob, other.log_prob), gradient)


class Moved(NamedTuple):
    """The state after a move, the probability with which each row was accepted (B,), and whether it was (B,)."""

    state: State
    acceptance: Tensor
    accepted: Tensor


def in_blocks(function: Callable[[Tensor], Any], x: Tensor, rows: int) -> Any:
    """A function of rows (B, *event), which gives one tensor or several with as many rows, at `rows` of them at a time.

    `rows` is rounded up to a multiple of 64: vectorised loops round the last few elements of a tensor in another way, and a
    particle whose last bit differs may have other descendants.

    >>> in_blocks(lambda x: (x + 1, x.sum(1)), torch.zeros(3, 2), 2)[1].shape
    torch.Size([3])
    """
    rows = -(-rows // _ALIGNED) * _ALIGNED
    if len(x) <= rows:
        return function(x)
    parts = [function(block) for block in x.split(rows)]
    return torch.cat(parts) if isinstance(parts[0], Tensor) else tuple(torch.cat(e) for e in zip(*parts, strict=True))


def start_state(density: Density, x: Tensor) -> State:
    """The state at x."""
    return State(x.detach(), *density(x))


def random_walk(
    log_prob: Callable[[Tensor], Tensor], state: State, step: float | Tensor, randomness: Randomness, *,
    scale: Tensor | float = 1.0,
) -> Moved:  # fmt: skip
    """Metropolis: x' = x + step scale z.

    Arguments:
        step: a number or (B,), one per row.
        scale: standard deviations that broadcast against the event.
    """
    rows, shape = len(state.x), state.x.shape[1:]
    z = randomness.normal(rows, shape, state.x.dtype)
    with torch.no_grad():
        x = state.x + _wide(step, state.x) * scale * z
        proposed = State(x, log_prob(x), None)
    return _decided(state._replace(gradient=None), proposed, proposed.log_prob - state.log_prob, randomness)


def langevin(
    density: Density, state: State, step: float | Tensor, randomness: Randomness, *, scale: Tensor | float = 1.0
) -> Moved:
    r"""Metropolis-adjusted Langevin: x' = x + h^2 / 2 s^2 grad log p~ + h s z, with the correction of its asymmetry.

    Arguments and source as for `hamiltonian`, of which it is the move of one leapfrog step.
    """
    return hamiltonian(density, state, step, randomness, leapfrog=1, scale=scale)


def hamiltonian(
    density: Density, state: State, step: float | Tensor, randomness: Randomness, *, leapfrog: int = 5,
    scale: Tensor | float = 1.0,
) -> Moved:  # fmt: skip
    """Hamiltonian Monte Carlo with `leapfrog` steps and fresh momenta. `leapfrog` gradients per row.

    Arguments:
        density: x -> log p~(x) and its gradient. Rows whose log-density is not finite on arrival are rejected.
        step: a number or (B,), one per row.
        scale: roughly the target's standard deviations, broadcast against the event (the inverse root of a diagonal mass).

    Source: MCMC using Hamiltonian dynamics, Neal 2011, arXiv 1206.1901.
    """
    assert state.gradient is not None, "gradient moves start from start_state(density, x)"
    rows, shape = len(state.x), state.x.shape[1:]
    start = randomness.normal(rows, shape, state.x.dtype)
    length = _wide(step, state.x)
    x, gradient, momentum = state.x, state.gradient, start
    value = state.log_prob
    # in whitened coordinates x = scale u: the momentum is standard normal and the gradient is scale * gradient
    for _ in range(leapfrog):
        momentum = momentum + 0.5 * length * scale * gradient
        x = x + length * scale * momentum
        value, gradient = density(x)
        momentum = momentum + 0.5 * length * scale * gradient
    kinetic = 0.5 * (start.square() - momentum.square()).reshape(rows, -1).sum(1)
    return _decided(state, State(x, value, gradient), value - state.log_prob + kinetic.to(value.dtype), randomness)


def rescaled(step: Tensor, acceptance: Tensor, wanted: float, rate: float | Tensor) -> Tensor:
    """Steps made longer where more than `wanted` was accepted, shorter where less: log step += rate (acceptance - wanted).

    During warm-up only, or between bridges of an annealing: a kernel that looks at its own past leaves nothing invariant.
    """
    return step * torch.exp(rate * (acceptance - wanted)).to(step.dtype)


def _decided(state: State, proposed: State, log_ratio: Tensor, randomness: Randomness) -> Moved:
    ratio = torch.where(log_ratio.isnan() | ~proposed.log_prob.isfinite(), -torch.inf, log_ratio)
    probability = ratio.clamp_max(0).exp()
    uniform = randomness.uniform(len(state.x), 1)[:, 0].to(probability.device)
    accepted = uniform < probability
    return Moved(proposed.chosen(accepted, state), probability, accepted)


def _wide(step: float | Tensor, x: Tensor) -> Tensor | float:
    if not isinstance(step, Tensor) or step.dim() == 0:
        return step
    return step.to(x.dtype).reshape(-1, *[1] * (x.dim() - 1))
