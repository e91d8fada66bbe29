"""Draws of the posterior itself from draws of an approximation: weights, resampling, moves."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.amortised.coordinates import Coordinates
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.result import Posterior
from sciflow.posterior.samplers import Defensive, Importance, Proposal
from sciflow.posterior.target import Target
from sciflow.posterior.weights import NoEffectiveDraws, weight_tests

if TYPE_CHECKING:
    from sciflow.posterior.amortised.model import AmortisedPosterior

__all__ = ["refined", "refined_target"]

_DEFENSIVE = 0.05  # share of proposals from the prior
_ROUNDS = 200
_EFFECTIVE, _FEWEST = 0.1, 100.0  # effective proposals that are asked for: per draw, and in any case
_MOVES = (3.0, 12.0)  # accepted ones per draw: with as many effective proposals as draws, and with fewer
_REPLICATES = 10


def refined(
    posterior: AmortisedPosterior, bound: BoundPosterior, draws: int, randomness: Randomness, likelihood: Any,
    proposals: int | None, tests: Sequence[Test],
) -> Posterior:  # fmt: skip
    r"""Equally weighted draws of p(theta | y) from proposals of q(theta | y).

    1. 10 proposals per draw (or `proposals`), 5 % of them from the prior, with the mixture's density in every weight:
       w = p~(theta) / (0.95 q(theta | y) + 0.05 p(theta)); k-hat and effective size are those of w. All of them are of q where
       the density of the prior has no constant (a truncated one).
    2. Systematic resampling.
    3. Metropolis moves along differences of other draws, until no two draws are the same and each has moved 3 times on average,
       12 times if fewer proposals are effective than draws are asked for: copies have to forget where they came from.

    The moves seldom change the mode, whose share is that of the weights: the certificate warns where fewer proposals are
    effective than a tenth of the draws, also if k-hat is small, and where two draws are the same.

    Source: Neural importance sampling for rapid and reliable gravitational-wave inference, Dax et al. 2022, arXiv 2210.05686;
    A Markov chain Monte Carlo version of the genetic algorithm differential evolution, ter Braak 2006, doi
    10.1007/s11222-006-8769-1.
    """
    target = refined_target(posterior, likelihood).counted()
    count = 10 * draws if proposals is None else integer("proposals", proposals, draws, 2**40)
    prior = posterior.prior
    # a truncated prior has no constant to be mixed by, and where it ends q is hardly ever
    mixture = [bound, prior] if prior is not None and prior.normalised else [bound]
    proposal = Proposal(bound) if len(mixture) == 1 else Defensive(mixture, [1 - _DEFENSIVE, _DEFENSIVE])
    importance = Importance(proposal, replicates=_REPLICATES, coverage=0)
    try:
        proposed = importance.run(target, max(count, 2 * _REPLICATES), randomness.child("proposals"), progress=False)
    except NoEffectiveDraws as error:
        raise NoEffectiveDraws(
            f"all {count} proposals have likelihood 0: the observation is not covered by the prior, or the likelihood is not "
            "that of the simulator",
            error.result,
        ) from error
    assert proposed.log_weight is not None
    theta, log_weight = proposed.rows, proposed.log_weight[0]
    outside = 1 - float(bound.in_prior(theta).double().mean())
    weighed, figures = weight_tests(log_weight, least=max(_FEWEST, _EFFECTIVE * draws))
    picked = systematic(log_weight.softmax(0), draws, randomness.uniform(1, 1)[0, 0])
    enough = _MOVES[0] if figures["effective"] >= draws else _MOVES[1]
    x, log_prob, moves, distinct = _moved(target, posterior.coordinates, theta[picked], picked, enough, randomness)
    ancestors = float(len(picked.unique()))
    figures.update(outside=outside, distinct=distinct / draws, ancestors=ancestors, proposals=float(count), moves=moves)
    more = [
        Test("accepted moves per draw", moves, 0.75 * enough, ">=", severity="warn",
             description="how far resampled copies have come from each other"),
        Test("distinct draws", distinct, draws, ">=", severity="warn",
             description=f"different points among {draws} draws, moved from {ancestors:.0f} different proposals"),
        Test("draws that are not finite", float((~x.isfinite()).any(-1).double().mean()), 0.0, "<="),
        Test("draws outside of the prior", outside, 0.0, "<=", severity="warn",
             description="share of proposals, which have weight 0"),
        target.values_test(),
        *target.edge_tests(),
    ]  # fmt: skip
    certificate = posterior.certificate([*tests, *weighed, *more], randomness.seed, draws, refined=True, target=repr(target))
    return Posterior(
        x.unsqueeze(0), log_prob=log_prob.unsqueeze(0), evidence=proposed.evidence,
        calls=target.calls, statistics=figures, traces={"log_weight": log_weight}, method=f"{posterior!r}, refined",
        seed=randomness.seed, certificate=certificate,
    )  # fmt: skip


def refined_target(posterior: AmortisedPosterior, likelihood: Any) -> Target:
    """What draws are refined to. Raises `UserError` for one of other parameters, and for a function without a prior."""
    if likelihood is None:
        raise UserError("refine=True needs likelihood=: a Problem, or a function theta (B, D) -> log p(y | theta) (B,)")
    if isinstance(likelihood, Target):
        if likelihood.event_shape != (posterior.coordinates.features,):
            raise UserError(
                f"the likelihood is over {tuple(likelihood.event_shape)}, the posterior ({posterior.coordinates.features},)"
            )
        return likelihood
    if posterior.prior is None:
        raise UserError("a likelihood given as a function needs the prior: load(folder, prior=...) or with_prior(prior)")
    return Problem(posterior.prior, likelihood=likelihood)


def _evaluated(target: Target, theta: Tensor, rows: int = 16384) -> Tensor:
    return torch.cat([target.log_prob(piece) for piece in theta.split(rows)])


def _moved(
    target: Target,
    coordinates: Coordinates,
    theta: Tensor,
    label: Tensor,
    enough: float,
    randomness: Randomness,
) -> tuple[Tensor, Tensor, float, float]:
    """Draws, log p~, accepted moves per draw, and how many different draws there are.

    Halves take turns: each moves along differences of the other.
    """
    randomness = randomness.child("moves")
    z, _ = coordinates(theta)
    theta, ladj = coordinates.outwards(z)
    log_prob = _evaluated(target, theta.to(target.dtype)).double()
    level = log_prob + ladj
    count, size = z.shape
    accepted = 0.0
    fresh = torch.zeros(count, dtype=torch.bool, device=z.device)  # moved away from where others may be
    order = randomness.uniform(count, 1)[:, 0].argsort()
    halves = order.chunk(2) if count >= 8 else (order,)
    first = _first_of(label)
    for turn in range(2 * _ROUNDS if len(halves) == 2 else 0):
        own, other = halves[turn % 2], halves[1 - turn % 2]
        u = randomness.uniform(len(own), 3)
        pair = (u[:, :2] * len(other)).long().clamp_max(len(other) - 1)
        # now and then a step of length one joins modes
        length = torch.where(u[:, 2] < 0.2, 1.0, 2.38 / math.sqrt(2 * size)) * torch.where(u[:, 2] > 0.6, 0.3, 1.0)
        step = z[other[pair[:, 0]]] - z[other[pair[:, 1]]]
        proposed = z[own] + length.unsqueeze(1) * step + 1e-3 * randomness.normal(len(own), (size,), z.dtype)
        point, inner = coordinates.outwards(proposed)
        value = _evaluated(target, point.to(target.dtype)).double()
        ratio = value + inner - level[own]
        accept = randomness.uniform(len(own), 1)[:, 0].log() < ratio
        rows = own[accept]
        z[rows], theta[rows] = proposed[accept], point[accept]
        log_prob[rows], level[rows] = value[accept], (value + inner)[accept]
        fresh[rows] = True
        accepted += float(accept.sum()) / count
        if turn % 2 and accepted >= enough and bool((fresh | first).all()):
            break
    distinct = float(len(theta.unique(dim=0)))  # before rounding to the target's precision
    return theta.to(target.dtype), log_prob, accepted, distinct


def _first_of(label: Tensor) -> Tensor:
    """Whether each row is the first one with its label."""
    found = torch.zeros(len(label), dtype=torch.bool, device=label.device)
    order = label.argsort(stable=True)
    ranked = label[order]
    found[order[torch.cat((ranked.new_ones(1, dtype=torch.bool), ranked[1:] != ranked[:-1]))]] = True
    return found
