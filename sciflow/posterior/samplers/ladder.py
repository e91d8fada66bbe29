"""Replicas at a ladder of temperatures: local moves on each rung, exchanges between them, spacing from rejections."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.moves import State, hamiltonian
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.adaptation import DualAveraging
from sciflow.posterior.samplers.annealed_bridge import joined
from sciflow.posterior.target import value_and_gradient

__all__ = ["Ladder", "spaced"]


class Ladder:
    r"""K rungs of C chains, log p_b(u) = log q(u) + b r(u), b from 0 to 1, rows ordered by rung.

    The lowest rung is drawn afresh from q each round. Exchanges alternate between even and odd pairs (the non-reversible
    scheme), each chain with its own replicas only: chains are independent of each other.

    Arguments:
        bridge: `draw`, `pieces` and `calls` of its target; see `sciflow.posterior.samplers.annealed_bridge.Bridge`, `Noise`.
        betas: (K,), from 0 to 1.
        leapfrog: mean number of steps of each trajectory, which is 0.5 to 1.5 times that.

    Source: Non-reversible parallel tempering: a scalable highly parallel MCMC scheme, Syed et al. 2019, arXiv 1905.02939.
    """

    def __init__(
        self, bridge: Any, calls: Any, betas: Tensor, chains: int, randomness: Randomness, *, moves: int, leapfrog: int,
        acceptance: float,
    ) -> None:  # fmt: skip
        self.bridge, self.calls, self.chains = bridge, calls, chains
        self.randomness, self.moves, self.leapfrog = randomness, moves, leapfrog
        self.betas = betas
        rungs = len(betas)
        u = bridge.draw(rungs * chains, randomness.child("start"))
        self.event = u.shape[1:]
        self.u = u.reshape(len(u), -1)
        self.scale = self.u.std(0).expand(rungs, -1).clone() if len(u) > 1 else torch.ones_like(self.u[:1]).expand(rungs, -1)
        self.log_q, self.ratio = u.new_empty(len(u)), u.new_empty(len(u))
        features = self.u.shape[1]
        self.dual = DualAveraging(u.new_full((rungs,), 0.9 * features**-0.25), acceptance)
        self.step = self.dual.step
        self.round = 0
        self.replica = torch.arange(rungs, device=u.device)[:, None].expand(rungs, chains).clone()  # who is where
        self.reset()

    def reset(self) -> None:
        """Counts to zero."""
        rungs = len(self.betas)
        self.counted = 0
        self.rejected = self.u.new_zeros(rungs - 1)  # mean probability of rejection, summed over rounds
        self.accepted = self.u.new_zeros(rungs)
        self.stones = self.u.new_full((rungs - 1, self.chains), -torch.inf)  # log of the sum of (p~ / q)^(step in b)
        self.trips, self.upward = torch.zeros_like(self.replica[0, 0]), torch.zeros_like(self.replica, dtype=torch.bool)

    @property
    def beta(self) -> Tensor:
        """One per row."""
        return self.betas.repeat_interleave(self.chains)

    def rung(self, values: Tensor, k: int) -> Tensor:
        """The rows of rung k."""
        return values[k * self.chains : (k + 1) * self.chains]

    def log_evidence(self) -> Tensor:
        """log Z (C,) of each ladder by stepping stones, for a normalised q."""
        return (self.stones - math.log(self.counted)).sum(0)

    def sweep(self) -> Tensor:
        """Refresh, move, exchange. Returns the mean acceptance of each rung (K,)."""
        fresh = self.bridge.draw(self.chains, self.randomness.child(f"base{self.round}")).reshape(self.chains, -1)
        self.u = torch.cat([fresh, self.u[self.chains :]])
        acceptance = self._move()
        self._exchange()
        self.round += 1
        return acceptance

    def _density(self, u: Tensor) -> tuple[Tensor, Tensor]:
        def joint(point: Tensor) -> Tensor:
            log_q, ratio = self.bridge.pieces(point.reshape(len(point), *self.event))
            return joined(log_q, ratio, beta)

        beta = self.beta[-len(u) :]  # the lowest rung does not move
        self.calls.gradient += len(u)
        finite = (u.abs() < torch.finfo(u.dtype).max ** 0.2).all(1)
        value, gradient = value_and_gradient(joint, torch.where(finite[:, None], u, 0))
        return torch.where(finite, value, -torch.inf), gradient

    def _move(self) -> Tensor:
        upper = self.u[self.chains :]
        step, scale = self.step.repeat_interleave(self.chains)[self.chains :], self.scale.repeat_interleave(self.chains, 0)
        state = State(upper, *self._density(upper))
        total = upper.new_zeros(len(upper))
        for _ in range(self.moves):
            share = 0.5 + float(self.randomness.uniform(1, 1)[0, 0])
            count = max(1, round(self.leapfrog * share))
            moved = hamiltonian(self._density, state, step, self.randomness, leapfrog=count, scale=scale[self.chains :])
            state, total = moved.state, total + moved.acceptance
        self.u = torch.cat([self.u[: self.chains], state.x])
        with torch.no_grad():
            self.log_q, self.ratio = self.bridge.pieces(self.u.reshape(len(self.u), *self.event))
        found = (total / self.moves).reshape(-1, self.chains).mean(1)
        return torch.cat([found.new_ones(1), found])

    def _exchange(self) -> None:
        rungs, chains = len(self.betas), self.chains
        ratio = self.ratio.reshape(rungs, chains)
        gap = (self.betas[1:] - self.betas[:-1])[:, None]
        self.stones = torch.logaddexp(self.stones, gap * ratio[:-1])
        change = gap * (ratio[:-1] - ratio[1:])
        # both -inf: nothing to exchange
        probability = torch.where(change.isnan(), -torch.inf, change).clamp_max(0).exp()
        self.rejected += 1 - probability.mean(1)
        uniform = self.randomness.uniform(chains, rungs - 1).T.to(probability.device)
        pair = torch.arange(rungs - 1, device=ratio.device) % 2 == self.round % 2
        swap = (uniform < probability) & pair[:, None]
        order = torch.arange(rungs, device=ratio.device)[:, None].expand(rungs, chains).clone()
        order[:-1] += swap.long()
        order[1:] -= swap.long()
        index = (order * chains + torch.arange(chains, device=ratio.device)).flatten()
        self.u, self.log_q, self.ratio = self.u[index], self.log_q[index], self.ratio[index]
        self.replica = self.replica.gather(0, order)
        self.upward = self.upward.gather(0, order)
        # a round trip: a replica that was at the bottom arrives at the top
        arrived = self.upward[-1]
        self.trips = self.trips + arrived.sum()
        self.upward[-1] = False
        self.upward[0] = True
        self.counted += 1


def spaced(betas: Tensor, rejected: Tensor) -> Tensor:
    """As many inverse temperatures between which equally much is rejected, from mean rejections (K - 1,) of pairs.

    >>> spaced(torch.tensor([0.0, 0.5, 1.0]), torch.tensor([0.6, 0.2]))
    tensor([0.0000, 0.3333, 1.0000])
    """
    barrier = torch.cat([rejected.new_zeros(1), rejected.clamp_min(1e-3).cumsum(0)])
    levels = torch.linspace(0, 1, len(betas), dtype=barrier.dtype, device=barrier.device) * barrier[-1]
    right = torch.searchsorted(barrier, levels).clamp(1, len(betas) - 1)
    share = (levels - barrier[right - 1]) / (barrier[right] - barrier[right - 1])
    # rejections are spread evenly in beta within a pair, but for the first one (often over decades)
    found = betas[right - 1] + share * (betas[right] - betas[right - 1])
    found[0], found[-1] = betas[0], betas[-1]
    return found
