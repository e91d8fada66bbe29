"""Parallel tempering: replicas from the base to the target that exchange places."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.annealed_bridge import Bridge
from sciflow.posterior.samplers.buffered import Buffered
from sciflow.posterior.samplers.chain_tests import markov_tests, merged
from sciflow.posterior.samplers.drift import drift_figures, drift_tests, further
from sciflow.posterior.samplers.ladder import Ladder, spaced
from sciflow.posterior.samplers.markov import packed
from sciflow.posterior.samplers.noise_coordinates import Noise
from sciflow.posterior.target import Target
from sciflow.training.progress import ProgressBar

__all__ = ["Tempered"]

_COPIES, _STRETCHES = 512, 32  # of draws of all chains, for the drift


class Tempered(Sampler):
    r"""Replicas of p_b \propto q (p~ / q)^b at inverse temperatures b from 0 to 1; draws are those at b = 1.

    The lowest rung is drawn from q itself, so that each round trip brings a draw that owes nothing to where the chain was:
    modes that q reaches are weighed right, however far they are from each other. Spacing, steps and scales are found in the
    warm-up and frozen.

    Arguments:
        base: q, a flow or a distribution; the prior of a `Problem` by default.
        noise: move in the noise u of the flow `base` (or of the prior's own), x = F(u), instead of in x.
        rungs: temperatures; None finds as many as keep rejections near one half, up to 32.
        chains: independent ladders.
        warmup: rounds that adapt.
        thin: rounds per draw.
        moves, leapfrog, acceptance: Hamiltonian moves a round, mean steps of each, and the acceptance aimed at.
        least: bulk and tail effective size below which the certificate warns.

    The evidence is that of stepping stones, one estimate for each ladder: consistent, not unbiased.

    Source: Non-reversible parallel tempering: a scalable highly parallel MCMC scheme, Syed et al. 2019, arXiv 1905.02939; in
    noise: NeuTra-lizing Bad Geometry in Hamiltonian Monte Carlo Using Neural Transport, Hoffman et al. 2019, arXiv 1903.03704.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[-2.0, 0.0], [2.0, 0.0]], 0.05), [[0.0, 1.0]], 0.2, [0.3])
    >>> found = Tempered(warmup=100, rungs=4)(exact.problem, 100)
    >>> bool(found.mean()[0].abs() < 0.4)
    True
    """

    def __init__(
        self, base: Any = None, *, noise: bool = False, rungs: int | None = None, chains: int = 8, warmup: int = 300,
        thin: int = 1, moves: int = 1, leapfrog: int = 4, acceptance: float = 0.8, least: float = 400.0,
    ) -> None:  # fmt: skip
        self.base, self.noise, self.least = base, noise, least
        self.rungs = None if rungs is None else integer("rungs", rungs, 2, 2**10)
        self.chains, self.warmup = integer("chains", chains, 1, 2**30), integer("warmup", warmup, 20, 2**30)
        self.thin, self.moves = integer("thin", thin, 1, 2**30), integer("moves", moves, 1, 2**20)
        self.leapfrog = integer("leapfrog", leapfrog, 1, 2**20)
        if not 0 < acceptance < 1:
            raise UserError(f"acceptance={acceptance}: give a number between 0 and 1")
        self.acceptance = acceptance

    def bridge(self, target: Target) -> Any:
        """The path of densities, in x or in noise."""
        return Noise(target, self.base) if self.noise else Bridge(target, self.base)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        bridge = self.bridge(target)
        ladder = self._warm(bridge, target, randomness)
        kept = ladder.u.new_empty(draws, self.chains, *ladder.event)
        values = ladder.u.new_empty(draws, self.chains)
        with ProgressBar(draws, visible=progress) as bar:
            for k in range(draws):
                for _ in range(self.thin):
                    ladder.accepted += ladder.sweep()
                kept[k] = ladder.rung(ladder.u, -1 + len(ladder.betas)).reshape(self.chains, *ladder.event)
                values[k] = ladder.rung(ladder.log_q + ladder.ratio, -1 + len(ladder.betas))
                bar.update(k + 1, f"draw {k + 1}/{draws}")
        space = bridge if self.noise else bridge.coordinates
        exchanged = 1 - ladder.rejected / ladder.counted
        statistics = {
            "rungs": float(len(ladder.betas)), "least_exchange": float(exchanged.min()),
            "round_trips": float(ladder.trips) / self.chains, "acceptance": float(ladder.accepted.min()) / ladder.counted,
            **self._drift(bridge, ladder, kept, randomness.child("further")),
        }  # fmt: skip
        traces = {"inverse_temperature": ladder.betas, "exchange": exchanged, "step": ladder.step}
        evidence = Evidence.from_replicates(ladder.log_evidence().tolist(), f"stepping stones, {self.chains} ladders")
        return packed(space, merged(kept), merged(values), evidence=evidence, statistics=statistics, traces=traces)

    def _drift(self, bridge: Any, ladder: Ladder, kept: Tensor, randomness: Randomness) -> dict[str, float]:
        """Of copies of draws that are evenly spaced along the chains; families are at least 32 stretches of chains."""
        several = min(len(kept), max(1, _COPIES // self.chains))
        u = kept[torch.linspace(0, len(kept) - 1, several, device=kept.device).long()].flatten(0, 1)
        density = bridge.value_and_gradient if self.noise else bridge.density(1.0)
        before, after = further(u, ladder.step[-1], ladder.scale[-1].reshape(ladder.event), randomness, density=density)
        stretch = torch.arange(several, device=u.device) * -(-_STRETCHES // self.chains) // several
        family = (stretch[:, None] * self.chains + torch.arange(self.chains, device=u.device)).flatten()
        return drift_figures(before, after, torch.zeros_like(family, dtype=torch.float64), family)

    def _warm(self, bridge: Any, target: Target, randomness: Randomness) -> Ladder:
        """Rounds in windows that double: scales and spacing from the last, steps all along."""
        first = 12 if self.rungs is None else self.rungs
        source = Buffered(randomness.child("moves"))
        betas = torch.linspace(0, 1, first, dtype=target.dtype, device=target.device) ** 4
        ladder = Ladder(bridge, target.calls, betas, self.chains, source, moves=self.moves, leapfrog=self.leapfrog,
                        acceptance=self.acceptance)  # fmt: skip
        ends = [self.warmup // 10, self.warmup // 4, self.warmup // 2, (85 * self.warmup) // 100]
        rows: list[Tensor] = []
        for k in range(self.warmup):
            ladder.step = ladder.dual.update(ladder.sweep())
            rows.append(ladder.u.reshape(len(ladder.betas), self.chains, -1))
            if k + 1 in ends:
                number = self.rungs
                if number is None:
                    number = min(32, max(3, 1 + int((2 * ladder.rejected.sum() / ladder.counted).ceil())))
                self._again(ladder, torch.cat(rows[len(rows) // 3 :], 1), number)
                rows = []
        ladder.step = ladder.dual.final
        ladder.reset()
        return ladder

    def _again(self, ladder: Ladder, rows: Tensor, number: int) -> None:
        """New temperatures; each takes the state, scale and step of the nearest old one."""
        old, rejected = ladder.betas, ladder.rejected / ladder.counted
        grid = torch.linspace(0, len(old) - 1, number, dtype=old.dtype, device=old.device)
        low = grid.floor().long().clamp_max(len(old) - 2)
        coarse = old[low] + (grid - low) * (old[low + 1] - old[low])
        barrier = torch.cat([rejected.new_zeros(1), rejected.clamp_min(1e-3).cumsum(0)])
        resampled = barrier[low] + (grid - low) * (barrier[low + 1] - barrier[low])
        betas = spaced(coarse, resampled.diff())
        nearest = (betas[:, None] - old).abs().argmin(1)
        spread = rows.std(1)
        scale = torch.where(spread > 0, spread, ladder.scale)[nearest]
        final = ladder.dual.final.clone()
        final[0] = final[1]  # the lowest rung does not move: its step is nobody's
        step = (final * ladder.scale.log().mean(1).exp())[nearest] / scale.log().mean(1).exp()
        chains = ladder.chains
        index = (nearest[:, None] * chains + torch.arange(chains, device=old.device)).flatten()
        ladder.u = ladder.u[index]
        ladder.betas, ladder.scale = betas, scale
        ladder.dual.restart(step)
        ladder.step = step
        ladder.replica = torch.arange(number, device=old.device)[:, None].expand(number, chains).clone()
        ladder.reset()

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        figures = found.statistics
        return [
            *markov_tests(found, least=self.least), *drift_tests(figures),
            Test("least exchange", figures["least_exchange"], 0.1, ">=", severity="warn",
                 description="mean probability of exchange between neighbours, worst pair: more rungs raise it"),
            Test("round trips a chain", figures["round_trips"], 5.0, ">=", severity="warn",
                 description="from the base to the target: what has not come from the base may be stuck in a mode"),
        ]  # fmt: skip
