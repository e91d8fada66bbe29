"""Twisted sequential Monte Carlo: a flow prior's own noisy way to the data, led by a guess of the likelihood, weighted."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.method import Sampler
from sciflow.posterior.moves import in_blocks
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.drift import drift_tests
from sciflow.posterior.samplers.smc_population import Population
from sciflow.posterior.samplers.smc_tests import population_tests
from sciflow.posterior.samplers.twisted_functions import PiGDMTwist, Twist
from sciflow.posterior.samplers.twisted_moves import rejuvenated
from sciflow.posterior.samplers.twisted_way import Way
from sciflow.posterior.target import Target
from sciflow.training.progress import ProgressBar
from sciflow.transport.guidance.base import Guidance
from sciflow.transport.steppers.endpoint import times_of

__all__ = ["TwistedSMC"]


class TwistedSMC(Sampler):
    r"""Particles follow the prior's SDE in steps, towards the observation, and weights undo what the leading did:

        x' ~ N(m(x) + s^2 g(x), s^2),   m = x + h (v - c n),   s^2 = 2 h c d,   c = scale,
        W *= N(x'; m, s^2) p~'(y | x') / [N(x'; m + s^2 g, s^2) p~(y | x)],

    with n = E[noise | x], d its deviation in x_t, g the gradient of log p~ (or what `guidance` says), and the exact likelihood
    in the place of p~ at the end. For the prior as the steps draw it this is exact at any number of particles in expectation.
    With `correct`, the weights also carry p(x_1) times the reversed steps over the steps: exact for the prior itself, and the
    steps' error becomes variance of the weights.

    Arguments:
        twist: p~, a `Twist`; `guidance`: leads the particles in the place of its gradient (weights make up for it).
        steps: number of steps, or the increasing times (0, ..., 1).
        runs: independent runs of `draws` particles each; they give the evidence its error.
        threshold: a run is resampled below this share of effective particles, and at the end.
        moves: Hamiltonian moves of all particles on the posterior after the end, which separate copies of one another. They
            need the prior's density; 0 for none, None for 30 where there is one.
        correct: see above; needs the prior's density.
        scale: of the noise of the steps.
        chunk: rows that are evaluated at a time, in multiples of 64: a matter of memory, draws do not depend on it.

    Modes that no particle of any run has met are in no figure of the certificate.

    Raises `UserError` for priors that are no `TransportFlow` from standard normal noise on an affine path in R^n.

    Source: Practical and Asymptotically Exact Conditional Sampling in Diffusion Models, Wu et al. 2023, arXiv 2306.17775;
    the SDE: Stochastic Interpolants, Albergo, Boffi and Vanden-Eijnden 2023, arXiv 2303.08797.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[-1.0, 0.0], [1.0, 0.0]], 0.1), [[0.0, 1.0]], 0.1, [0.3])
    >>> found = TwistedSMC(runs=4, steps=40, moves=5)(exact.problem, 100)
    >>> found.x.shape, abs(found.evidence.log_value - exact.log_evidence) < 0.5
    (torch.Size([4, 100, 2]), True)
    """

    def __init__(
        self, twist: Twist | None = None, *, guidance: Guidance | None = None, steps: int | Sequence[float] = 100,
        runs: int = 8, threshold: float = 0.5, moves: int | None = None, correct: bool = False, scale: float = 1.0,
        chunk: int = 2**14,
    ) -> None:  # fmt: skip
        if not 0 < threshold <= 1 or not scale > 0:
            raise UserError(f"threshold={threshold}, scale={scale}: give a share of the particles in (0, 1] and a scale > 0")
        self.twist = PiGDMTwist() if twist is None else twist
        self.guidance, self.times = guidance, times_of(steps)
        self.runs, self.threshold, self.correct, self.scale = integer("runs", runs, 1, 2**20), threshold, correct, scale
        self.moves = None if moves is None else integer("moves", moves, 0, 2**20)
        self.chunk = integer("chunk", chunk, 1, 2**40)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        problem = _problem(target)
        self.twist.check(problem)
        if self.correct:
            problem.prior.need_density()
        way = Way(problem, self.twist, self.guidance, self.runs * draws, self.scale, self.chunk)
        population = Population(self.runs, draws, problem.device)
        x = randomness.normal(self.runs * draws, problem.event_shape, problem.dtype)
        debt = torch.zeros(len(x), dtype=torch.float64, device=x.device)  # log of reversed steps over steps
        if self.correct:
            debt = debt - way.base(x)
        here = way.look(self.times[0], x)
        population.reweight(here.log_twist)
        with ProgressBar(len(self.times) - 1, visible=progress) as bar:
            for k, (t, s) in enumerate(zip(self.times, self.times[1:], strict=False)):
                index = population.resample(self.threshold, randomness)
                if index is not None:
                    x, debt, here = x[index], debt[index], here.rows(index)
                following, log_ratio, log_step = way.step(t, s, x, here, randomness)
                last = s == 1
                if last and not self.correct:
                    log_twist = self._likelihood(problem, following)
                else:
                    there = way.look(s, following)
                    log_twist = self._likelihood(problem, following) if last else there.log_twist
                    debt = debt + way.back(t, s, x, following, there) - log_step if self.correct else debt
                if last and self.correct:
                    with torch.no_grad():
                        debt = debt + in_blocks(problem.log_prior, following, self.chunk).double()
                population.reweight(log_ratio + log_twist - here.log_twist + (debt if last else 0.0))
                x, here = following, (here if last else there)
                bar.update(k + 1, f"t = {s:.3g}")
        return self._finished(problem, population, x, randomness)

    def _finished(self, problem: Problem, population: Population, x: Tensor, randomness: Randomness) -> Result:
        statistics = {"end_effective": float(population.effective().min()) / population.particles}
        evidence = population.evidence(f"twisted SMC, {self.runs} runs of {population.particles}")
        index = population.resample(1.0, randomness)
        x = x if index is None else x[index]
        rows = len(x)
        statistics["distinct_before"] = len(torch.unique(x.reshape(rows, -1), dim=0)) / rows
        statistics |= {"ancestors": population.ancestors(), "families": population.families()}
        x, log_prob, figures = rejuvenated(problem, x, population, self.moves, randomness.child("moves"), self.chunk)
        statistics |= {**figures, "k_hat": population.tail(), "independent": population.independent(x, log_prob)}
        statistics["distinct"] = len(torch.unique(x.reshape(rows, -1), dim=0)) / rows
        shape = (self.runs, population.particles)
        likelihood = self._likelihood(problem, x).to(x.dtype)
        return Result(
            x.reshape(*shape, *x.shape[1:]), population.final_weight(),
            None if log_prob is None else log_prob.reshape(shape), likelihood.reshape(shape), evidence=evidence,
            statistics=statistics, traces={"effective_size": torch.stack(population.sizes), "time": torch.tensor(self.times)},
        )  # fmt: skip

    @torch.no_grad()
    def _likelihood(self, problem: Problem, x: Tensor) -> Tensor:
        return in_blocks(problem.log_likelihood, x, self.chunk).double()

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        tests = population_tests(found)
        if not found.statistics["moves"]:
            tests.append(Test("moves after the end", None if self.moves is None else 0.0,
                              description="none: copies stay copies, and errors of the steps stay"))  # fmt: skip
        elif "drift" in found.statistics:
            tests += drift_tests(found.statistics)
        return tests


def _problem(target: Target) -> Problem:
    if not isinstance(target, Problem):
        raise UserError(f"TwistedSMC needs a Problem with a flow prior, got {type(target).__name__}: use TemperedSMC")
    if not math.prod(target.event_shape):
        raise UserError("the prior has no features")
    return target
