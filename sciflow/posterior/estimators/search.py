"""Inference-time search with rollover budget forcing: more evaluations, more reward."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.estimators.walk import Guided, Walk, steps_of

__all__ = ["RolloverSearch"]


class RolloverSearch(Guided):
    r"""Each step of a stochastic walk is drawn anew until log p(y | E[x_1 | x_t]) exceeds the best so far; what a step leaves
    of its quota is the next one's.

    Steps are those of dx = (v + g^2 / 2 score) dt + g dW with g^2 = 2 noise (1 - t), which has the marginals of the flow
    whatever the noise. If the quota ends before, the best of what was drawn is taken.

    Arguments:
        steps: of the walk.
        quota: draws a step; one is the prior.
        noise: strength of the stochastic steps: candidates differ by it.

    Source: Inference-Time Scaling for Flow Models via Stochastic Generation and Rollover Budget Forcing, Kim et al. 2025,
    arXiv 2503.19385; there on a variance-preserving path, here on the flow's own.
    """

    bias = "draws concentrate where the likelihood is largest, the more the larger the quota: a maximiser, no sampler"
    right = "a constant likelihood or a quota of one, where draws are the prior's; as a search for one good point"

    def __init__(self, steps: int = 50, *, quota: int = 4, noise: float = 1.0, chunk: int = 2**12) -> None:
        if not noise > 0:
            raise UserError(f"noise={noise}: candidates need a strength > 0 to differ")
        self.steps, self.quota = integer("steps", steps, 2, 2**20), integer("quota", quota, 1, 2**20)
        self.noise, self.chunk = noise, integer("chunk", chunk, 1, 2**30)

    def walk(self, walk: Walk) -> Tensor:
        x = walk.normal()
        clean, noise = walk.ends(0.0, x)
        best = walk.problem.log_likelihood(clean)
        budget = torch.zeros(walk.rows, dtype=torch.long, device=x.device)
        with torch.no_grad():
            for t, s in steps_of(self.steps):
                budget = budget + self.quota
                x, clean, noise, best, budget = self._step(walk, t, s, x, clean, noise, best, budget)
        return x

    def _step(
        self, walk: Walk, t: float, s: float, x: Tensor, clean: Tensor, noise: Tensor, best: Tensor, budget: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """One step: rows that have found a better place keep what is left of their budget."""
        mean, spread = self._kernel(walk, t, s, x, clean, noise)
        shape = (-1,) + (1,) * (x.dim() - 1)
        chosen = [mean, clean, noise]
        reward = torch.full_like(best, -torch.inf)
        open_ = torch.ones_like(budget, dtype=torch.bool)
        while bool(open_.any()):
            there = mean + spread * walk.normal()
            ends = walk.ends(s, there) if s < 1 else (there, torch.zeros_like(there))
            found = walk.problem.log_likelihood(ends[0])
            better = open_ & ((found > reward) | (reward == -torch.inf))
            chosen = [torch.where(better.reshape(shape), new, old) for new, old in zip((there, *ends), chosen, strict=True)]
            reward = torch.where(better, found, reward)
            budget = budget - open_.long()
            # without noise, at the end, all candidates are the same
            open_ = open_ & (reward <= best) & (budget > 0) if spread > 0 else torch.zeros_like(open_)
        return chosen[0], chosen[1], chosen[2], torch.maximum(best, reward), budget

    def _kernel(self, walk: Walk, t: float, s: float, x: Tensor, clean: Tensor, noise: Tensor) -> tuple[Tensor, float]:
        """x_s = a(s) E[x_1] + sqrt(b(s)^2 - k^2) E[x_0] + k z: marginals are kept to first order in the step."""
        a, b = (float(value.flatten()[0]) for value in walk.at(s, x))
        before = float(walk.at(t, x)[1].flatten()[0])
        # g^2 dt of the equation above; never more noise than the time has
        spread = min((2 * self.noise * (1 - t) * (s - t)) ** 0.5, b, before)
        return a * clean + max(b * b - spread * spread, 0.0) ** 0.5 * noise, spread
