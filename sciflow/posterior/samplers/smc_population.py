"""Weighted particles of several independent runs: reweighting, resampling, evidence and ancestors."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.weights import log_mean, pareto_k

__all__ = ["Population", "conditional_share"]


class Population:
    """R independent runs of N particles: rows r * N ... (r + 1) * N - 1 belong to run r and are resampled among themselves.

    The estimate of each Z is unbiased if the thresholds and kernels do not depend on the particles: the product over
    resampling times of the mean weights.
    """

    def __init__(self, runs: int, particles: int, device: torch.device | str) -> None:
        self.runs, self.particles = runs, particles
        self.log_weight = torch.zeros(runs, particles, dtype=torch.float64, device=device)
        self.log_evidence = torch.zeros(runs, dtype=torch.float64, device=device)  # of the steps before the last resampling
        self.ancestor = torch.arange(particles, device=device).expand(runs, particles).clone()
        self.sizes: list[Tensor] = []

    def reweight(self, log_increment: Tensor) -> None:
        """Multiply the weights by exp(log_increment), (R * N,)."""
        value = torch.nan_to_num(log_increment.double(), nan=-torch.inf, posinf=-torch.inf)
        self.log_weight = self.log_weight + value.reshape(self.runs, self.particles)
        self.sizes.append(self.effective())

    def effective(self) -> Tensor:
        """Effective sizes (R,); 0 where all weights are."""
        return (2 * self.log_weight.logsumexp(1) - (2 * self.log_weight).logsumexp(1)).exp().nan_to_num(0.0)

    def resample(self, threshold: float, randomness: Randomness) -> Tensor | None:
        """Rows (R * N,) to take, or None if no run is below `threshold` * N effective particles; others keep theirs."""
        uniform = randomness.uniform(self.runs, 1)[:, 0]
        due = (self.effective() < threshold * self.particles) & (self.log_weight > -torch.inf).any(1)
        if not bool(due.any()):
            return None
        index = torch.arange(self.particles, device=due.device).expand(self.runs, -1).clone()
        for run in due.nonzero()[:, 0].tolist():
            index[run] = systematic(self.log_weight[run].softmax(0), self.particles, uniform[run])
            self.log_evidence[run] += log_mean(self.log_weight[run])
            self.log_weight[run] = 0.0
        self.ancestor = self.ancestor.gather(1, index)
        return (index + torch.arange(self.runs, device=due.device)[:, None] * self.particles).flatten()

    def log_values(self) -> Tensor:
        """log of the estimated Z of each run (R,)."""
        return self.log_evidence + log_mean(self.log_weight)

    def evidence(self, method: str) -> Evidence:
        """Over the runs."""
        return Evidence.from_replicates(self.log_values().tolist(), method)

    def final_weight(self) -> Tensor:
        """Log-weights (R, N) of all particles of all runs: each run counts by its estimate of Z."""
        return self.log_weight + self.log_evidence[:, None]

    def ancestors(self) -> float:
        """Mean number over the runs of first particles that still have descendants with weight."""
        alive = [len(a[w > -torch.inf].unique()) for a, w in zip(self.ancestor, self.log_weight, strict=True)]
        return sum(alive) / len(alive)

    def families(self) -> float:
        """1 / sum of squared weights of families, which are the descendants of one first particle, over all runs.

        Members of a family owe their place to one draw: a weighted mean over particles, and Z, are known no better than
        from so many independent draws, until moves have made members forget where they came from.

        Source: A general theory of particle filters in hidden Markov models, Chan and Lai 2013, arXiv 1312.5114; Variance
        estimation in the particle filter, Lee and Whiteley 2018, arXiv 1509.00394.
        """
        return float(1 / self._sizes().square().sum())

    def family(self) -> Tensor:
        """The number (R * N,) of the family of each particle: that of its first particle among those of all runs."""
        return (torch.arange(self.runs, device=self.ancestor.device)[:, None] * self.particles + self.ancestor).flatten()

    def tail(self) -> float:
        """k-hat of the families' weights: each is the weight, by all it has led to, of one draw of the base. Where few of
        many have nearly all, others like them were not met yet, and every run has Z too small."""
        sizes = self._sizes()
        return pareto_k(sizes[sizes > 0].log())

    def independent(self, x: Tensor, log_prob: Tensor | None) -> float:
        r"""How many independent draws the particles x (R * N, *event) are worth, whose families moves have made forget:

            1 / (sum_i W_i^2 + rho (sum_f W_f^2 - sum_i W_i^2)),

        rho the largest correlation within families of coordinates, their squares and `log_prob`, W_f the families' weights.
        With rho = 1 these are `families`; with 0 Kish's effective size. Modes that families do not leave give a large rho.
        """
        weight = self.final_weight().flatten().softmax(0)
        values = x.reshape(len(x), -1).double()
        values = torch.cat([values - (weight[:, None] * values).sum(0), *([] if log_prob is None else [log_prob[:, None]])], 1)
        values = torch.cat([values, values.square()], 1)
        values = torch.where(weight[:, None] > 0, values, 0.0)
        part = weight[:, None] * (values - (weight[:, None] * values).sum(0))
        sums = torch.zeros_like(part).index_add_(0, self.family(), part)
        own, all_own = part.square().sum(0), weight.square().sum()
        pairs = self._sizes().square().sum() - all_own
        variance = (part.square() / torch.where(weight > 0, weight, 1.0)[:, None]).sum(0)
        correlation = (sums.square().sum(0) - own) / (pairs * variance)
        largest = correlation[correlation.isfinite()].clamp(0, 1)
        return float(1 / (all_own + (largest.max() if len(largest) else 1.0) * pairs))

    def _sizes(self) -> Tensor:
        weight = self.final_weight().flatten().softmax(0)
        return torch.zeros_like(weight).index_add_(0, self.family(), weight)


def conditional_share(log_weight: Tensor, log_increment: Tensor) -> Tensor:
    """The conditional effective share in [1/N, 1] of an increment for weights (N,): 1 where it is constant.

    Source: Towards automatic model comparison, Zhou, Johansen and Aston 2016, arXiv 1303.3123.
    """
    weight = log_weight.log_softmax(0)
    first, second = (weight + log_increment).logsumexp(0), (weight + 2 * log_increment).logsumexp(0)
    return (2 * first - second).exp().nan_to_num(0.0)
