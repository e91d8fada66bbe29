"""Minimising the variance of importance weights: annealed draws of p^2 / q, replayed from a prioritised buffer."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import integer
from sciflow.posterior.moves import rescaled
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.posterior.samplers.annealed_path import follow
from sciflow.posterior.samplers.annealed_schedule import Schedule
from sciflow.posterior.samplers.annealed_transition import Transition, Tuned
from sciflow.posterior.target import Target
from sciflow.posterior.variational.objective import EnergyObjective
from sciflow.training.processes import process_rank

__all__ = ["FAB"]


class FAB(EnergyObjective):
    r"""\int p^2 / q: 1 + the variance of the importance weights of q, the alpha = 2 divergence. It covers modes.

    Its gradient is -E_{p^2/q}[\nabla_w log q(x)] up to a factor. Draws of q are annealed towards p^2 / q, where q is too small,
    and kept with their weights; each step takes rows of the buffer in proportion to these and corrects for how q has changed
    since.

    Arguments:
        temperatures: steps of the annealing.
        transition: moves at each; one Hamiltonian one of 5 leapfrog steps by default. Step sizes follow the acceptance.
        every: optimiser steps from one annealing (of as many draws as the batch has) to the next.
        least, capacity: size of the buffer before the first step, and at most, in batches.
        largest: limit of the correction q_then / q_now.

    Source: Flow Annealed Importance Sampling Bootstrap, Midgley et al. 2022, arXiv 2208.01893.
    """

    x: Tensor
    log_weight: Tensor
    log_q: Tensor
    step: Tensor
    fills: Tensor
    runs: Tensor
    steps_done: Tensor

    def __init__(
        self, *, temperatures: int = 4, transition: Transition | None = None, every: int = 8, least: int = 4,
        capacity: int = 64, largest: float = 10.0,
    ) -> None:  # fmt: skip
        super().__init__()
        self.temperatures, self.every = integer("temperatures", temperatures, 1, 2**20), integer("every", every, 1, 2**40)
        self.transition = Transition(moves=1) if transition is None else transition
        self.least, self.largest = integer("least", least, 1, 2**20), largest
        self.capacity = integer("capacity", capacity, self.least, 2**30)
        for name in ("fills", "runs", "steps_done"):
            self.register_buffer(name, torch.zeros((), dtype=torch.int64))

    def bind(self, target: Target, rows: int, seed: int) -> None:
        super().bind(target, rows, seed)
        like: dict[str, Any] = {"dtype": target.dtype, "device": target.device}
        count = rows * self.capacity
        self.register_buffer("x", torch.zeros(count, *target.event_shape, **like))
        self.register_buffer("log_weight", torch.full((count,), -torch.inf, dtype=torch.float64, device=target.device))
        self.register_buffer("log_q", torch.zeros(count, **like))
        self.register_buffer("step", torch.full((self.temperatures,), self.transition.start(target.features), **like))

    def forward(self, flow: nn.Module, batch: Any) -> Tensor:
        rows = len(batch.x)
        done = int(self.steps_done)
        for _ in range(self.least if done == 0 else int(done % self.every == 0)):
            self._anneal(flow, rows)
        self.steps_done += 1
        # empty places have weight 0
        index = torch.multinomial(self.log_weight.softmax(0), rows, replacement=True)
        log_q = flow().log_prob(self.x[index])
        with torch.no_grad():
            correction = self.log_q[index] - log_q
            self.log_weight[index] = self.log_weight[index] + correction.double()
            self.log_q[index] = log_q
        return -correction.exp().clamp_max(self.largest) * log_q

    def extra_repr(self) -> str:
        own = f"temperatures={self.temperatures}, {self.transition!r}, every={self.every}, capacity={self.capacity}"
        return ", ".join(filter(None, [own, super().extra_repr()]))

    @torch.no_grad()
    def _anneal(self, flow: nn.Module, rows: int) -> None:
        self.runs += 1
        randomness = Randomness(self.seed, f"FAB/{process_rank()}/{int(self.runs)}", device=self.target.device,
                                dtype=self.target.dtype)  # fmt: skip
        bridge = _Squared(self.target, flow)
        u = bridge.draw(rows, randomness.child("base"))
        betas = [(k + 1) / self.temperatures for k in range(self.temperatures)]
        spread = u.std(0)
        scale = torch.where((spread > 0) & spread.isfinite(), spread, 1.0)
        tuned = [Tuned(step, scale) for step in self.step]
        u, log_w, traces = follow(bridge, Schedule(betas, tuned, []), self.transition, u, randomness)
        self.step.copy_(rescaled(self.step, traces["acceptance"].to(self.step), self.transition.acceptance, 1.0))
        log_q = bridge.value(u)[0]
        good = log_w.isfinite() & log_q.isfinite() & u.isfinite().reshape(rows, -1).all(1)
        self.counted(good)
        count, room = int(good.sum()), len(self.x)
        place = torch.arange(int(self.fills), int(self.fills) + count, device=u.device) % room
        self.x[place], self.log_weight[place], self.log_q[place] = u[good], log_w[good], log_q[good]
        self.fills += count


class _Squared(Bridge):
    """q (p / q)^(2 b): from q to p^2 / q."""

    def pieces(self, u: Tensor) -> tuple[Tensor, Tensor]:
        log_q, ratio = super().pieces(u)
        return log_q, 2 * ratio
