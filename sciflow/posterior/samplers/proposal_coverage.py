"""Whether a proposal covers the target: what its own weights cannot say."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.posterior.moves import State, random_walk
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.result import Result
from sciflow.posterior.samplers.proposal import Proposal
from sciflow.posterior.target import Target

__all__ = ["coverage_tests", "escaping"]

_ROWS, _PRIOR = 256, 2000


@torch.no_grad()
def escaping(
    proposal: Proposal, target: Target, x: Tensor, log_w: Tensor, moves: int, randomness: Randomness, *,
    top: Tensor | None = None,
) -> dict[str, float]:  # fmt: skip
    """Shares of the target above the largest weight that was proposed.

    `escaped`: resampled draws take Metropolis steps, which leave the target invariant. Were it covered, hardly any would come
    to a weight beyond all of N proposals; where the proposal ends too early, many do. `missed`: the posterior mass of such
    places as weighted prior draws know it, given if at least 20 of those are effective.

    Arguments:
        x, log_w: draws with their weights.
        top: the largest log p~ / q that was proposed; of `log_w` if None.
    """
    top = log_w.max() if top is None else top
    rows = min(_ROWS, len(x))
    index = systematic(log_w.softmax(0), rows, randomness.uniform(1, 1)[0, 0])
    wide = (-1,) + (1,) * (x.dim() - 1)
    weight = log_w.softmax(0).to(x.dtype).reshape(wide)
    mean = (weight * x).sum(0)
    scale = (weight * (x - mean).square()).sum(0).sqrt()
    # where single draws have all the weight the proposals' own spread is all that is known
    scale = torch.where(scale > 0, scale, x.std(0))
    step = torch.full((rows,), 2.4 / max(target.features, 1) ** 0.5, dtype=x.dtype, device=x.device)
    state = State(x[index], target.log_prob(x[index]))
    for k in range(moves):
        # steps of four lengths in turn: no one fits every target
        state = random_walk(target.log_prob, state, step * 0.5 ** (k % 4), randomness, scale=scale).state
    found = {"escaped": _share(target, proposal, state.x, state.log_prob, top, None)}
    prior = getattr(proposal, "prior", None)
    if isinstance(target, Problem) and prior is not target.prior and target.prior.distribution is not None:
        y = target.draw_prior(min(_PRIOR, len(x)), randomness.child("prior")).to(x.dtype)
        likelihood = target.log_likelihood(y).double()
        if bool((likelihood > -torch.inf).any()):
            share = likelihood.softmax(0)
            if float(1 / share.square().sum()) >= 20:
                log_p = target.log_prior(y) + likelihood
                found["missed"] = _share(target, proposal, y, log_p, top, share)
    return found


def coverage_tests(found: Result) -> list[Test]:
    """Of the shares that `escaping` has found, where it was asked."""
    tests = []
    if "escaped" in found.statistics:
        tests.append(
            Test("draws that leave the proposal", found.statistics["escaped"], 0.05, "<=",
                 description="share of draws that a few Metropolis steps lead to weights above all that were proposed")
        )  # fmt: skip
    if "missed" in found.statistics:
        tests.append(
            Test("prior mass above all weights", found.statistics["missed"], 0.05, "<=",
                 description="share of the posterior, as prior draws know it, where weights exceed all that were proposed")
        )  # fmt: skip
    return tests


def _share(target: Target, proposal: Proposal, x: Tensor, log_p: Tensor, top: Tensor, share: Tensor | None) -> float:
    log_q = proposal.log_prob(x, target.calls)
    beyond = ((log_p - log_q).double() > top + 1e-9) | (log_q == -torch.inf) & (log_p > -torch.inf)
    return float(beyond.double().mean() if share is None else (share * beyond).sum())
