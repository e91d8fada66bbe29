"""Posterior draws of a denoiser and a linear measurement, from coarse to fine."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.method import Sampler
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers.langevin_tests import mixing_tests, residual_test
from sciflow.posterior.samplers.noisy_posterior import NoisyPosterior
from sciflow.training.progress import ProgressBar

__all__ = ["AnnealedLangevin"]


class AnnealedLangevin(Sampler):
    r"""Draws of p(x | y) for a flow prior, a linear operator and Gaussian noise; no gradient through the network.

    1. Coarse: at noise s from `largest` down, x_0 ~ N(m, P_r) with the denoiser's guess as prior mean and standard deviation
       r = s d / sqrt(s^2 + d^2), then x = x_0 + s' noise at the next level s'. Exact for a normal prior of deviation d.
    2. Fine: at each of `levels`, (s, moves), underdamped Langevin dynamics of p_s(x) N(y; A x, sigma^2), see
       `NoisyPosterior`, in the splitting BAOAB with mass P^-1: one velocity evaluation a move, exact stationary variances for
       normal densities at any stable step, and directions the data do not see are crossed in as many moves as they are wide,
       not as its square.

    Draws are those of p_s at the last level: the posterior in the limit of many moves and s -> 0. Each is a run of its own.
    Separate modes are chosen on the coarse levels, where the dynamics is not that of the posterior: their masses are
    approximate (off by 0.16 in total variation on a mixture of ten modes in four dimensions), which no test sees.
    The first `chains` of them go on for `states` times `thin` moves more, of which every `thin`-th state is kept only to be
    compared: R-hat and effective sizes say whether the last level has been reached.

    Arguments:
        data_scale: d, the standard deviation of the entries of x.
        largest: the first noise, in units of d.
        coarse: number of coarse levels, down to the first fine one.
        levels: pairs (noise in units of d, moves).
        step: of the dynamics; below 2, where it becomes unstable.
        friction: per unit of time.
        chains, states, thin: of the test of mixing; states = 0 leaves it out, and the certificate is then incomplete.
        noise_error: by which fraction sigma^2 may be wrong, where it was estimated: the test of the residual allows for it.
        noise_excess: which fraction of it may be too much, if not that.
        chunk: rows at once; all by default.
        bf16: velocities in bfloat16.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364; Robust
    Compressed Sensing MRI with Deep Generative Priors, Jalal et al. 2021, arXiv 2108.01368; Rational construction of stochastic
    numerical methods for molecular sampling, Leimkuhler and Matthews 2013, arXiv 1203.5428 (BAOAB).

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = AnnealedLangevin(states=0)(exact.problem, 400)
    >>> bool((found.mean() - exact.posterior.mean()).abs().max() < 0.2)
    True
    """

    caveat = "masses of separate modes are approximate, and in none of the tests"

    def __init__(
        self, data_scale: float = 1.0, *, largest: float = 8.0, coarse: int = 20,
        levels: Sequence[tuple[float, int]] = ((0.4, 2), (0.2, 2), (0.12, 3), (0.07, 15)), step: float = 1.0,
        friction: float = 0.5, chains: int = 4, states: int = 50, thin: int = 1,
        noise_error: float = 0.0, noise_excess: float | None = None, chunk: int | None = None, bf16: bool = False,
    ) -> None:  # fmt: skip
        self.levels = [(float(s), integer("moves", moves, 1, 2**31)) for s, moves in levels]
        noises = [largest, *(s for s, _ in self.levels)]
        if not self.levels or not all(a > b > 0 for a, b in pairwise(noises)) or not data_scale > 0:
            raise UserError(f"data_scale={data_scale}, largest={largest}, levels={levels}: noises must be > 0 and decrease")
        if not 0 < step < 2 or not friction > 0:
            raise UserError(f"step={step}, friction={friction}: give a step between 0 and 2 and a friction > 0")
        self.data_scale, self.largest, self.step, self.friction = data_scale, largest, step, friction
        self.coarse, self.chains = integer("coarse", coarse, 1, 2**31), integer("chains", chains, 2, 2**31)
        self.states, self.thin = integer("states", states, 0, 2**31), integer("thin", thin, 1, 2**31)
        if 0 < self.states < 4:
            raise UserError(f"states={states}: R-hat needs at least 4 states a chain, or 0 to leave it out")
        if not 0 <= noise_error < 1:
            raise UserError(f"noise_error={noise_error}: give a fraction of sigma^2, at least 0 and below 1")
        if noise_excess is not None and not 0 <= noise_excess < 1:
            raise UserError(f"noise_excess={noise_excess}: give a fraction of sigma^2, at least 0 and below 1")
        self.noise_error, self.noise_excess = noise_error, noise_excess
        self.chunk = None if chunk is None else integer("chunk", chunk, 1, 2**31)
        self.bf16 = bf16

    def doubled(self) -> AnnealedLangevin:
        """With twice the moves at every fine level and between the states that are compared."""
        return AnnealedLangevin(
            self.data_scale, largest=self.largest, coarse=self.coarse, levels=[(s, 2 * moves) for s, moves in self.levels],
            step=self.step, friction=self.friction, chains=self.chains, states=self.states, thin=2 * self.thin,
            noise_error=self.noise_error, noise_excess=self.noise_excess, chunk=self.chunk, bf16=self.bf16,
        )  # fmt: skip

    @torch.no_grad()
    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Posterior:
        if not isinstance(target, Problem):
            raise UserError(f"{type(self).__name__} needs a Problem with a flow prior, not a {type(target).__name__}")
        posterior = NoisyPosterior(target, bf16=self.bf16)
        size = draws if self.chunk is None else self.chunk
        rows, residuals, chains = [], [], []
        with ProgressBar(draws, visible=progress) as bar:
            for first in range(0, draws, size):
                count = min(size, draws - first)
                source = Randomness(randomness.seed, randomness.name, start=first, device=target.device, dtype=target.dtype)
                x, s = self._annealed(posterior, count, source)
                rows.append(x)
                residuals.append(posterior.residual(x))
                left = min(self.chains - first, count) if self.states else 0
                if left > 0:
                    chains.append(self._continued(posterior, x[:left], s, source.child("states")))
                bar.update(first + count, "draws")
        x = torch.cat(rows)
        log_likelihood = -0.5 * torch.cat(residuals) - 0.5 * posterior.data * math.log(2 * math.pi * posterior.variance)
        traces = {"residual": torch.cat(residuals) / posterior.data}
        if chains:
            traces["states"] = torch.cat(chains)
        return Posterior(x.unsqueeze(0), log_likelihood=log_likelihood.unsqueeze(0), traces=traces,
                         statistics={"last_noise": s, "data": float(posterior.data)})  # fmt: skip

    def tests(self, found: Any, target: Any) -> Sequence[Test]:
        scale = Test("noise of the last level", found.statistics["last_noise"], unit="x",
                     description="the prior is blurred by it")  # fmt: skip
        return [residual_test(found, self.noise_error, self.noise_excess), *mixing_tests(found.traces.get("states")), scale]

    def _annealed(self, posterior: NoisyPosterior, rows: int, randomness: Randomness) -> tuple[Tensor, float]:
        """Rows at the last level, and its noise."""
        problem, d = posterior.problem, self.data_scale
        shape = tuple(problem.event_shape)
        first = self.levels[0][0]
        noises = [d * self.largest * (first / self.largest) ** (k / self.coarse) for k in range(self.coarse + 1)]
        x = noises[0] * randomness.normal(rows, shape)
        for s, after in pairwise(noises):
            r = s * d / math.hypot(s, d)
            guess = posterior.mean(posterior.denoised(x, s), r) + posterior.noise(rows, r, randomness)
            x = guess + after * randomness.normal(rows, shape)
        for number, (level, moves) in enumerate(self.levels):
            s = level * d
            *_, (x, mean) = self._dynamics(posterior, x, s, moves, randomness)
            if number + 1 < len(self.levels):  # the noise that the next level does not have
                x = torch.lerp(mean, x, self.levels[number + 1][0] / level)
        return x, s

    def _continued(self, posterior: NoisyPosterior, x: Tensor, s: float, randomness: Randomness) -> Tensor:
        """States of the dynamics from x (C, *event): (C, states, *event)."""
        moves = self._dynamics(posterior, x, s, self.states * self.thin, randomness)
        return torch.stack([state for number, (state, _) in enumerate(moves, 1) if number % self.thin == 0], 1)

    def _dynamics(
        self, posterior: NoisyPosterior, x: Tensor, s: float, moves: int, randomness: Randomness
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(x, m(x)) after each of the moves, in time steps of `step` where the stiffest direction has frequency 1."""
        half, keep = self.step / 2, math.exp(-self.friction * self.step)
        kick = math.sqrt(1 - keep**2)
        velocity = posterior.noise(len(x), s, randomness)
        mean = posterior.mean(posterior.denoised(x, s), s)
        for _ in range(moves):
            velocity = velocity + half * (mean - x)
            x = x + half * velocity
            velocity = keep * velocity + kick * posterior.noise(len(x), s, randomness)
            x = x + half * velocity
            mean = posterior.mean(posterior.denoised(x, s), s)
            velocity = velocity + half * (mean - x)
            yield x, mean
