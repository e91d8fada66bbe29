"""How much of a learned likelihood to believe: decided by simulations that neither model has seen."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.amortised.fitting import fit_posterior, usable
from sciflow.posterior.amortised.learned_likelihood import LearnedLikelihood, fit_likelihood
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.pooled import Pool, PooledPosterior
from sciflow.posterior.amortised.recipes import Recipe, SplineRecipe
from sciflow.posterior.prior import as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.training.data import split

__all__ = ["Scores", "fit_pooled", "held_out_scores"]

SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
_DEFENSIVE = 0.1  # share of proposals from the prior


class Scores(NamedTuple):
    """Held-out log q(theta | y) of pools with these shares of the likelihood.

    Attributes:
        shares: a.
        mean: (shares,), in nats; a lower bound of what infinitely many proposals would give.
        error: (shares,) standard error of the mean's difference to that of share 0.
        gap: (shares,) by how much `mean` would grow if theta itself were left out of the estimate of Z(y): what few proposals
            can hide at most.
    """

    shares: tuple[float, ...]
    mean: Tensor
    error: Tensor
    gap: Tensor

    @property
    def best(self) -> float:
        return self.shares[int(self.mean.argmax())]


@torch.no_grad()
def held_out_scores(
    posterior: AmortisedPosterior, likelihood: LearnedLikelihood, theta: Tensor, y: Tensor, *,
    shares: Sequence[float] = SHARES, proposals: int = 1000, seed: int = 0,
) -> Scores:  # fmt: skip
    r"""Scores of simulations (N, D), (N, ...) that neither model was trained on.

    With w(t) = p~(t) / (0.9 q(t | y) + 0.1 p(t)) and `proposals` t_i of that mixture,

        log q_a(theta | y) >= log p~(theta) - log [(w(theta) + sum_i w(t_i)) / (proposals + 1)]

    in the mean: that theta itself is in the sum keeps places that no proposal has reached from counting as gained.
    """
    prior = posterior.prior
    if prior is None:
        raise UserError("scores need the prior: with_prior(prior)")
    randomness = Randomness(seed, "held_out_scores")
    mean, without = [], []
    for row in range(len(theta)):
        target = Pool(posterior.bind(y[row]), prior, likelihood, 0.5)
        own = round(proposals * (1 - _DEFENSIVE))
        drawn, _ = target.bound.from_uniform(randomness.uniform(own, target.bound.uniforms), density=False)
        points = torch.cat((theta[row : row + 1].double(), drawn, prior.draw(proposals - own, randomness).double()))
        points = points.to(target.dtype)
        q, joint = target.parts(points)
        mixture = torch.logaddexp(q + math.log1p(-_DEFENSIVE), prior.log_prob(points).double() + math.log(_DEFENSIVE))
        found, other = [], []
        for share in shares:
            value = joint if share == 1 else q if share == 0 else torch.lerp(q, joint, share)
            weight = torch.where(joint > -torch.inf, value - mixture, -torch.inf)
            found.append(value[0] - weight.logsumexp(0) + math.log(len(weight)))
            other.append(value[0] - weight[1:].logsumexp(0) + math.log(len(weight) - 1))
        mean.append(torch.stack(found))
        without.append(torch.stack(other))
    scores, open_scores = torch.stack(mean), torch.stack(without)
    error = (scores - scores[:, :1]).std(0) / math.sqrt(len(scores))
    return Scores(tuple(shares), scores.mean(0), error, (open_scores - scores).mean(0))


def fit_pooled(
    prior: Any, theta: Tensor, y: Tensor, *, flow: Recipe | AmortisedPosterior | None = None, likelihood: Recipe | None = None,
    shares: Sequence[float] = SHARES, scored: int = 200, proposals: int = 1000, validation: float = 0.1, seed: int = 0,
    progress: bool = True, checkpoint: str | Path | None = None, training: Mapping[str, Any] | None = None,
) -> PooledPosterior:  # fmt: skip
    """Learn the posterior and the likelihood, and pool them with the share that scores best on held-out simulations.

    Arguments:
        flow, likelihood: recipes of the two; `SplineRecipe()` and `LikelihoodRecipe()` by default. A posterior that was
            learned from the same simulations, with the same `validation` and `seed`, need not be learned again.
        shares: of the likelihood that are tried.
        scored: how many of the held-out simulations are scored, with `proposals` parameters each.
        the others: see `fit_posterior`; validation must be > 0.
    """
    if not validation > 0:
        raise UserError("pooling is decided by simulations that are held out: give validation > 0")
    known = as_prior(prior)
    theta, y, excluded = usable(known, theta, y)
    common: dict[str, Any] = {"validation": validation, "seed": seed, "progress": progress, "training": training}
    folders = {name: None if checkpoint is None else Path(checkpoint) / name for name in ("posterior", "likelihood")}
    second = fit_likelihood(known, theta, y, flow=likelihood, checkpoint=folders["likelihood"], **common)
    if isinstance(flow, AmortisedPosterior):
        first = flow.with_prior(known)
    else:
        first = fit_posterior(
            known, theta, y, flow=SplineRecipe() if flow is None else flow, checkpoint=folders["posterior"], **common
        )
        first.excluded.fill_(excluded)
    held = split(len(theta), validation, seed=seed)[1][:scored]
    scores = held_out_scores(first, second, theta[held], y[held], shares=shares, proposals=proposals, seed=seed)
    found = PooledPosterior(first, second, scores.best)
    found.scores = scores
    return found
