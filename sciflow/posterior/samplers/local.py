"""Local moves of chains and what is known of their best settings."""

from __future__ import annotations

import math

from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.moves import Moved, State, hamiltonian, langevin, random_walk, start_state
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.whitening import Whitened
from sciflow.transport.part import Part

__all__ = ["Local"]

# acceptance at which a move does most, and the first step in units of standard deviations (times n^-power)
_WANTED = {"walk": (0.27, 2.4, 1 / 2), "langevin": (0.6, 1.2, 1 / 6), "hamiltonian": (0.8, 0.9, 1 / 4)}


class Local(Part):
    """One move of a batch of chains, in whitened coordinates.

    Arguments:
        kind: "walk" (random-walk Metropolis), "langevin" (MALA) or "hamiltonian".
        acceptance: what the warm-up aims at; 0.27, 0.6 and 0.8 by default.
        length: mean length of a Hamiltonian trajectory in standard deviations; each is 0.5 to 1.5 times that. A quarter of a
            period, pi/2, brings a normal coordinate to independence.
        leapfrog: the most steps of a trajectory.

    Source: Optimal scaling for various Metropolis-Hastings algorithms, Roberts and Rosenthal 2001; MCMC using Hamiltonian
    dynamics, Neal 2011, arXiv 1206.1901.
    """

    def __init__(
        self, kind: str = "hamiltonian", *, acceptance: float | None = None, length: float = math.pi / 2, leapfrog: int = 50
    ) -> None:
        if kind not in _WANTED:
            raise UserError(f"unknown move {kind!r}; known are {', '.join(_WANTED)}")
        self.acceptance = _WANTED[kind][0] if acceptance is None else acceptance
        if not 0 < self.acceptance < 1 or not length > 0:
            raise UserError(f"acceptance={acceptance}, length={length}: give an acceptance between 0 and 1 and a length > 0")
        self.kind, self.length, self.leapfrog = kind, length, integer("leapfrog", leapfrog, 1, 2**20)

    def first_step(self, features: int) -> float:
        """The step that fits a standard normal in so many dimensions."""
        _, size, power = _WANTED[self.kind]
        return size * features**-power

    def start(self, view: Whitened, w: Tensor) -> State:
        """The state at w, with its gradient if the move needs one."""
        return State(w, view.log_prob(w)) if self.kind == "walk" else start_state(view.density, w)

    def move(self, view: Whitened, state: State, step: Tensor, number: float, randomness: Randomness) -> Moved:
        """One move. `step` is () or (B,), `number` the step as a number: it sets how many leapfrog steps there are."""
        if self.kind == "walk":
            return random_walk(view.log_prob, state, step, randomness)
        if self.kind == "langevin":
            return langevin(view.density, state, step, randomness)
        share = 0.5 + float(randomness.uniform(1, 1)[0, 0])
        count = min(self.leapfrog, max(1, round(self.length * share / number)))
        return hamiltonian(view.density, state, step, randomness, leapfrog=count)
