"""Markov transitions that leave a bridge's distribution invariant, with a step size for each temperature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.moves import State, hamiltonian, random_walk, rescaled, start_state
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.transport.part import Part

__all__ = ["Transition", "Tuned"]


class Tuned(NamedTuple):
    """What a pilot has found for one temperature: step () and scale (*event), or numbers."""

    step: Tensor | float
    scale: Tensor | float


class Transition(Part):
    """`moves` moves of one kind at fixed step and scale.

    Arguments:
        kind: "hamiltonian" or "langevin" (they need gradients), or "walk".
        moves: how many, one after the other.
        leapfrog: steps of each Hamiltonian move.
        acceptance: what a pilot aims at.

    Source: see `sciflow.posterior.moves`.
    """

    def __init__(
        self, kind: str = "hamiltonian", *, moves: int = 2, leapfrog: int = 5, acceptance: float | None = None
    ) -> None:
        wanted = {"hamiltonian": 0.8, "langevin": 0.6, "walk": 0.3}
        if kind not in wanted:
            raise UserError(f"unknown transition {kind!r}; known are {', '.join(wanted)}")
        self.kind, self.moves = kind, integer("moves", moves, 1, 2**20)
        self.leapfrog = 1 if kind == "langevin" else integer("leapfrog", leapfrog, 1, 2**20)
        self.acceptance = wanted[kind] if acceptance is None else acceptance

    def start(self, features: int) -> float:
        """The first step size, in units of the scale."""
        return {"hamiltonian": 0.5, "langevin": 1.0, "walk": 2.4 / features**0.5}[self.kind]

    def __call__(
        self, bridge: Bridge, beta: float, u: Tensor, tuned: Tuned, randomness: Randomness, *, tune: bool = False
    ) -> tuple[Tensor, Tensor, Tuned]:
        """u' (B, *event), the acceptance () and the tuning, which changes only if `tune` (then nothing is left invariant)."""
        step = torch.as_tensor(tuned.step, dtype=u.dtype, device=u.device)
        walk = self.kind == "walk"
        density = bridge.density(beta)
        with torch.no_grad():
            state = State(u, bridge.log_prob(u, beta)) if walk else start_state(density, u)
        total = u.new_zeros(())
        for _ in range(self.moves):
            # the length varies by +-20 %: no period of the leapfrog can be met for good
            length = step * (0.8 + 0.4 * randomness.uniform(1, 1)[0, 0].to(u.dtype))
            if walk:
                moved = random_walk(lambda x: bridge.log_prob(x, beta), state, length, randomness, scale=tuned.scale)
            else:
                moved = hamiltonian(density, state, length, randomness, leapfrog=self.leapfrog, scale=tuned.scale)
            state, mean = moved.state, moved.acceptance.mean()
            total = total + mean
            if tune:
                step = rescaled(step, mean, self.acceptance, 1.5)
        return state.x, total / self.moves, Tuned(step, tuned.scale)
