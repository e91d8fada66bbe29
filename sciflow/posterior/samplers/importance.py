"""Importance sampling from a flow, the prior or a mixture, with every figure that says whether it worked."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.method import Sampler
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.result import Posterior, Result
from sciflow.posterior.samplers.no_draws import no_effective_draws
from sciflow.posterior.samplers.proposal import as_proposal
from sciflow.posterior.samplers.proposal_coverage import coverage_tests, escaping
from sciflow.posterior.target import Target
from sciflow.posterior.weights import NoEffectiveDraws, effective_size, log_mean, pareto_k, smoothed, weight_tests

__all__ = ["Importance"]


class Importance(Sampler):
    r"""w = p~(x) / q(x) for draws x of q; \hat Z is their mean, with an error from `replicates` groups of draws.

    Arguments:
        proposal: a flow, `flow(condition)`, a distribution, a `Defensive` mixture; the prior by default.
        smooth: replace the largest weights by quantiles of the tail fitted to them; raw ones stay in
            `traces["log_weight_raw"]`. The evidence and all tests are those of raw weights.
        multiple: with 1, all proposals are returned with their weights. With m > 1, m * draws are proposed and `draws` of
            equal weight resampled from them; the share of duplicates is tested.
        replicates: groups of draws for the error of the evidence.
        least: effective size below which the certificate warns.
        coverage: Metropolis steps that a few hundred resampled draws take to see whether they leave for places that the
            proposal does not cover; 0 for none. Modes that are far from all proposals stay unseen: compare with another
            evidence by `sciflow.posterior.evidence.agreement`.
        chunk: rows per evaluation of the target.

    Raises `NoEffectiveDraws`, which carries the result, if all weights are 0.

    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> found = Importance()(exact.problem, 4000)
    >>> found.certificate.verdict, abs(found.evidence.log_value - exact.log_evidence) < 3 * found.evidence.error
    ('passed', True)
    """

    def __init__(
        self, proposal: Any = None, *, smooth: bool = False, multiple: int = 1, replicates: int = 16, least: float = 100.0,
        coverage: int = 20, chunk: int = 2**16,
    ) -> None:  # fmt: skip
        self.proposal, self.smooth = proposal, smooth
        self.multiple = integer("multiple", multiple, 1, 2**20)
        self.replicates = integer("replicates", replicates, 2, 2**20)
        self.coverage = integer("coverage", coverage, 0, 2**20)
        self.chunk = integer("chunk", chunk, 1, 2**40)
        self.least = least
        if smooth and multiple > 1:
            raise UserError("smooth=True and multiple > 1: weights that are resampled away need no smoothing; choose one")

    def run(self, target: Target, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        proposal = as_proposal(self.proposal, target)
        rows = draws * self.multiple
        if rows < 2 * self.replicates:
            raise UserError(
                f"{rows} proposals in {self.replicates} replicates: give {2 * self.replicates} or more, or fewer replicates"
            )
        is_prior = isinstance(target, Problem) and getattr(proposal, "prior", None) is target.prior
        if not is_prior:
            proposal.need_constant()
        parts = []
        for first in range(0, rows, self.chunk):
            count = min(self.chunk, rows - first)
            source = Randomness(randomness.seed, f"{randomness.name}/propose", start=first, device=target.device,
                                dtype=target.dtype)  # fmt: skip
            x, log_q = proposal.draw(count, source, target.calls)
            x = x.to(target.dtype)
            with torch.no_grad():
                likelihood = target.log_likelihood(x) if is_prior else None  # type: ignore[attr-defined]
                log_p = log_q + likelihood if likelihood is not None else target.log_prob(x)
            parts.append((x, log_q, log_p, log_p - log_q if likelihood is None else likelihood))
        x, log_q, log_p, log_w = (torch.cat(entries) for entries in zip(*parts, strict=True))
        # a prior draw has the likelihood as its weight, also where the density overflows or is not a number
        drawn = x.isfinite().reshape(rows, -1).all(1) if is_prior else log_q > -torch.inf
        log_w = torch.where(drawn & ~log_w.isnan(), log_w, -torch.inf).double()
        result = self._result(x, log_q, log_p, log_w, draws, randomness)
        if not bool((log_w > -torch.inf).any()):
            raise _nothing(proposal, rows, result, target)
        if self.coverage:
            figures = escaping(proposal, target, x, log_w, self.coverage, randomness.child("coverage"))
            return Result(**{**vars(result), "statistics": {**result.statistics, **figures}})
        return result

    def _result(self, x: Tensor, log_q: Tensor, log_p: Tensor, log_w: Tensor, draws: int, randomness: Randomness) -> Result:
        groups = [float(log_mean(group)) for group in log_w.tensor_split(self.replicates)]
        evidence = Evidence.from_replicates(groups, f"importance sampling, {len(log_w)} draws")
        traces: dict[str, Tensor] = {}
        figures = {"proposals": float(len(log_w)), "zero_weights": float((log_w == -torch.inf).double().mean())}
        size = effective_size(log_w)
        figures |= {"k_hat": pareto_k(log_w), "effective": size.size, "effective_low": size.low, "effective_high": size.high,
                    "effective_optimism": size.optimism}  # fmt: skip
        weight: Tensor | None = log_w
        if self.multiple > 1 and size.size > 0:
            place = randomness.child("resample").uniform(1, 1)[0, 0]
            index = systematic(log_w.softmax(0), draws, place)
            traces = {"log_weight_raw": log_w}
            x, log_q, log_p, weight = x[index], log_q[index], log_p[index], None
            # rows of one proposal are neighbours: shuffled, so that part of the draws is as good as all
            order = randomness.child("order").uniform(draws, 1)[:, 0].argsort()
            x, log_q, log_p = x[order], log_q[order], log_p[order]
            figures["distinct"] = float(len(index.unique()))
        elif self.smooth and size.size > 0:
            traces = {"log_weight_raw": log_w}
            weight = smoothed(log_w)
        return Result(
            x[None], None if weight is None else weight[None], log_p[None], log_proposal=log_q[None], evidence=evidence,
            statistics=figures, traces=traces,
        )  # fmt: skip

    def tests(self, found: Posterior, target: Any) -> list[Test]:
        raw = found.traces.get("log_weight_raw")
        if raw is None:
            assert found.log_weight is not None
            raw = found.log_weight.flatten()
        tests, _ = weight_tests(raw, least=self.least, k=found.statistics["k_hat"])
        if self.smooth:
            tests.append(Test("weights are smoothed", 1.0, description="raw ones are kept beside; tests are those of raw ones"))
        if self.multiple > 1:
            share = 1 - found.statistics["distinct"] / found.x.shape[1]
            tests.append(Test("share of duplicates", share, 0.05, "<=", severity="warn",
                              description="draws that were resampled before: propose a larger multiple"))  # fmt: skip
        return [*tests, *coverage_tests(found)]


def _nothing(proposal: Any, rows: int, result: Result, target: Target) -> NoEffectiveDraws:
    kind = f"{proposal!r}"
    kind = kind if len(kind) < 100 else type(proposal).__name__
    why = f"all {rows} weights are 0, {kind} does not reach the target ({target.why_nothing()}); give a proposal that covers it"
    return no_effective_draws(why, result, target, "Importance")
