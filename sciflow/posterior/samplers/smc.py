"""Sequential Monte Carlo from the prior to the posterior by tempering the likelihood."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.annealed_bridge import Bridge, joined
from sciflow.posterior.samplers.annealed_schedule import Schedule, increasing, pilot
from sciflow.posterior.samplers.annealed_transition import Transition
from sciflow.posterior.samplers.drift import ROUNDS, drift_figures, drift_tests, further
from sciflow.posterior.samplers.smc_population import Population
from sciflow.posterior.samplers.smc_tests import population_tests
from sciflow.posterior.target import Target
from sciflow.training.progress import ProgressBar

__all__ = ["TemperedSMC"]


class TemperedSMC(Sampler):
    r"""Particles from the base to the target along p_b \propto q (p~ / q)^b, resampled and moved at each b.

    A pilot run finds the temperatures (each loses the same conditional effective share) and tunes the moves; the runs that
    are returned keep them fixed, so each estimate of Z is unbiased.

    Arguments:
        base: normalised, where particles start; the prior of a `Problem` by default, needed for an `Energy`.
        runs: independent runs, of `draws` particles each: they give the evidence its error.
        betas: inverse temperatures, increasing to 1; found by the pilot by default.
        share: conditional effective share between two temperatures.
        transition: moves at each temperature; `final` times as many at the last.
        threshold: runs are resampled below this share of effective particles.
        pilot: particles of the pilot run; as many as draws, but 200 to 1000, by default.
        further: rounds of moves of many lengths after the end (10 gradients a draw each). The draws returned are those after
            them; draws that were right before stay where they were in the mean, which is tested. 0 leaves it untested.

    Modes that no particle of any run has met are in no figure of the certificate.

    Source: Sequential Monte Carlo samplers, Del Moral, Doucet and Jasra 2006, cond-mat/0212648.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 0.1, [2.0])
    >>> found = TemperedSMC()(exact.problem, 200)
    >>> found.x.shape, abs(found.evidence.log_value - exact.log_evidence) < 0.2
    (torch.Size([8, 200, 2]), True)
    """

    def __init__(
        self, base: Any = None, *, runs: int = 8, betas: Sequence[float] | None = None, share: float = 0.9,
        transition: Transition | None = None, final: int = 3, threshold: float = 0.5, pilot: int | None = None,
        further: int = ROUNDS,
    ) -> None:  # fmt: skip
        if not 0 < share < 1 or not 0 <= threshold <= 1:
            raise UserError(f"share={share}, threshold={threshold}: give shares of the particles between 0 and 1")
        self.base, self.runs = base, integer("runs", runs, 1, 2**20)
        self.betas = None if betas is None else increasing(betas)
        self.share, self.threshold = share, threshold
        self.pilot = None if pilot is None else integer("pilot", pilot, 2, 2**31)
        self.transition = Transition() if transition is None else transition
        self.final, self.further = integer("final", final, 1, 2**20), integer("further", further, 0, 2**20)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        bridge = Bridge(target, self.base)
        count = min(max(draws, 200), 1000) if self.pilot is None else self.pilot
        schedule = pilot(bridge, self.transition, count, randomness.child("pilot"), share=self.share, betas=self.betas)
        return self._along(bridge, schedule, draws, randomness.child("runs"), progress)

    def _along(self, bridge: Bridge, schedule: Schedule, draws: int, randomness: Randomness, progress: bool) -> Result:
        u = bridge.draw(self.runs * draws, randomness.child("base"))
        population = Population(self.runs, draws, u.device)
        log_q, ratio = bridge.value(u)
        acceptances, last = [], 0.0
        with ProgressBar(len(schedule.betas), visible=progress) as bar:
            for k, (beta, tuned) in enumerate(zip(schedule.betas, schedule.tuned, strict=True)):
                population.reweight(joined(torch.zeros_like(ratio), ratio, beta - last))
                # at the end all are made of equal weight: the moves then separate what was doubled
                index = population.resample(self.threshold if beta < 1 else 1.0, randomness)
                u = u if index is None else u[index]
                parent = u
                for _ in range(self.final if beta == 1 else 1):
                    u, acceptance, _ = self.transition(bridge, beta, u, tuned, randomness)
                acceptances.append(acceptance)
                log_q, ratio = bridge.value(u)
                last = beta
                bar.update(k + 1, f"inverse temperature {beta:.3g}")
        walk = self.transition.kind == "walk"
        before, after = further(u, *tuned, randomness.child("further"), rounds=self.further, log_prob=bridge.final,
                                density=None if walk else bridge.density(1.0))  # fmt: skip
        drift = drift_figures(before, after, population.final_weight(), population.family())
        u = after.x
        log_q, ratio = bridge.value(u)
        x = bridge.coordinates.constrain(u)
        moved = (u != parent).reshape(len(u), -1).any(1)
        distinct = len(torch.unique(u.reshape(len(u), -1), dim=0)) / len(u)
        statistics = {
            "temperatures": float(len(schedule.betas)), "ancestors": population.ancestors(), "distinct": distinct,
            "families": population.families(), "moved": float(moved.double().mean()),
            "acceptance": float(torch.stack(acceptances).min()), "k_hat": population.tail(),
            "independent": population.independent(u, log_q + ratio), **(drift if self.further else {}),
        }  # fmt: skip
        # -inf densities at the end can only be where no particle ever had weight
        shape = (self.runs, draws)
        with torch.no_grad():
            ladj = bridge.coordinates.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(-1)
        return Result(
            x.reshape(*shape, *x.shape[1:]), population.final_weight(), (log_q - ladj + ratio).reshape(shape),
            ratio.reshape(shape) if bridge.from_prior else None,
            evidence=population.evidence(f"tempered SMC, {self.runs} runs of {draws}"), statistics=statistics,
            traces={"inverse_temperature": torch.tensor(schedule.betas), "effective_size": torch.stack(population.sizes),
                    "acceptance": torch.stack(acceptances)},
        )  # fmt: skip

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        tests = population_tests(found, least_acceptance=0.3 if self.transition.kind != "walk" else 0.1)
        return [*tests, *drift_tests(found.statistics)]
