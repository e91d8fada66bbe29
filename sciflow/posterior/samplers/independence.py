"""Independence Metropolis: a flow proposes, the chain corrects; alone or between local moves."""

from __future__ import annotations

from typing import Any

import torch

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.posterior.method import Sampler
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.chain_tests import markov_tests, merged
from sciflow.posterior.samplers.jumps import InData, Jumps, Mixed, mixed
from sciflow.posterior.samplers.local import Local
from sciflow.posterior.samplers.markov import figures_of, in_data
from sciflow.posterior.samplers.proposal import as_proposal
from sciflow.posterior.samplers.proposal_coverage import coverage_tests, escaping
from sciflow.posterior.samplers.walker import Walker
from sciflow.posterior.target import Target, Unconstrained
from sciflow.posterior.weights import PSIS, pareto_k
from sciflow.training.progress import ProgressBar

__all__ = ["Independence", "finished", "jump_tests"]


class Independence(Sampler):
    """x' ~ q, accepted with min(1, w(x') / w(x)), w = p~ / q; between proposals local moves, if any.

    Where w is bounded the chain forgets its start at the rate 1 - 1 / sup w. Where q misses a place, a chain that comes there
    stays for long: k-hat of the proposals' weights, the longest stay and R-hat say so. Local moves find such places.

    Arguments:
        proposal: q, a flow, `flow(condition)` or a distribution whose density is exact (a random trace is refused); the prior
            by default.
        local: moves between proposals, tuned in the warm-up; None for none.
        moves: how many.
        chains: how many, in one batch; they start from proposals.
        warmup: rounds that are thrown away.
        thin: rounds per draw.
        least: bulk and tail effective size below which the certificate warns.
        coverage: as for `Importance`; without local moves chains never leave what the proposal reaches.

    Source: Markov chains for exploring posterior distributions, Tierney 1994.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = Independence()(exact.problem, 500)
    >>> found.x.shape, found.certificate.verdict
    (torch.Size([8, 500, 2]), 'passed')
    """

    def __init__(
        self, proposal: Any = None, *, local: Local | None = None, moves: int = 3, chains: int = 8, warmup: int = 200,
        thin: int = 1, least: float = 400.0, coverage: int = 20,
    ) -> None:  # fmt: skip
        self.proposal, self.local, self.least = proposal, local, least
        self.moves, self.chains = integer("moves", moves, 1, 2**20), integer("chains", chains, 1, 2**30)
        self.warmup, self.thin = integer("warmup", warmup, 0, 2**30), integer("thin", thin, 1, 2**30)
        self.coverage = integer("coverage", coverage, 0, 2**20)

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        space = Unconstrained(target)
        proposal = as_proposal(self.proposal, target)
        source = InData(proposal, space)
        jumps = Jumps(source, space, self.chains, randomness.child("proposals"))
        chain = Mixed(jumps, jumps.next(), None, self.moves, randomness.child("jumps"))
        for _ in range(self.warmup if self.local is None else max(10, self.warmup // 4)):
            chain.round()
        if self.local is not None:
            chain.walker = Walker(space, self.local, chain.here.u, randomness.child("moves"))
            chain.walker.warm(max(self.warmup, 50))
            for _ in range(self.warmup):
                chain.round()
            chain.walker.reset()
        chain.reset()
        found = finished(space, chain, draws, self.thin, progress)
        if self.local is not None or not self.coverage:
            return found
        # draws count alike, but for chains that never came to the target
        assert found.log_prob is not None
        alive = torch.where(found.log_prob.flatten() > -torch.inf, 0.0, -torch.inf).double()
        if not bool((alive == 0).any()):
            return found
        top = found.traces["proposed_log_weight"].double().max()
        figures = escaping(proposal, target, found.rows, alive, self.coverage, randomness.child("coverage"), top=top)
        return Result(**{**vars(found), "statistics": {**found.statistics, **figures}})

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        return [*markov_tests(found, least=self.least), *jump_tests(found, alone=self.local is None),
                *coverage_tests(found)]  # fmt: skip


def finished(space: Any, chain: Mixed, draws: int, thin: int, progress: bool) -> Result:
    """Run the frozen phase and pack it up."""
    with ProgressBar(draws, visible=progress) as bar:
        u, log_prob, log_q = mixed(chain, draws, thin, lambda k: bar.update(k, f"draw {k}/{draws}"))
    x, log_p = in_data(space, merged(u), merged(log_prob))
    log_weight = torch.cat(chain.jumps.log_weights)
    rounds = max(chain.rounds, 1)
    statistics = {
        "global_acceptance": float(chain.accepted.mean()) / rounds, "longest_stay": float(chain.longest.max()) / rounds,
        "k_hat": pareto_k(log_weight),
    }  # fmt: skip
    if chain.walker is not None:
        statistics |= figures_of(chain.walker)
    log_proposal = merged(log_q) + (log_p - merged(log_prob))  # as a density in x
    return Result(x, log_prob=log_p, log_proposal=log_proposal, statistics=statistics,
                  traces={"proposed_log_weight": log_weight})  # fmt: skip


def jump_tests(found: Posterior, *, alone: bool) -> list[Test]:
    """k-hat of the proposals' weights (warns above 0.7, fails above 1) and the longest stay: what rejections say.

    The rate at which a chain of jumps alone forgets is 1 - 1 / sup w: with weights that have no mean there is no rate, and the
    draws are those of importance sampling with the same weights. Chains with local moves (`alone` false) leave the tails by
    these, so k-hat is only reported.
    """
    sign = "<=" if alone else None
    k = found.statistics["k_hat"]
    shown = None if k != k else max(k, -1.0)
    stay = found.statistics["longest_stay"]
    return [
        Test("k-hat of proposals", shown, 0.7 if alone else None, sign, severity="warn", description=_TAIL, reference=PSIS),
        Test("k-hat of proposals, limit", shown, 1.0 if alone else None, sign, description=_TAIL, reference=PSIS),
        Test("longest stay", stay, 0.1, "<=", severity="warn",
             description="share of the run that a chain went without accepting a proposal, worst chain"),
    ]  # fmt: skip


_TAIL = "tail of p~ / q over all proposals; above 1 their mean is unknown, and chains stay for very long where q is not"
