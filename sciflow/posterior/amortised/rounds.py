"""Several rounds of simulations for one observation."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sciflow.arguments import integer
from sciflow.flows import Flow
from sciflow.posterior.amortised.fitting import fit_posterior
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.recipes import Recipe
from sciflow.posterior.amortised.truncated import Region, TruncatedPrior
from sciflow.posterior.prior import as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.simulation import Runner, Simulations, simulate

__all__ = ["Rounds", "fit_rounds"]

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Rounds:
    """What `fit_rounds` found.

    Attributes:
        posterior: of the last round; right for this observation only (its prior is the truncated one).
        simulations: of all rounds.
        acceptances: share of prior draws inside the region of each later round: how much smaller it has become.
    """

    posterior: AmortisedPosterior
    simulations: Simulations
    acceptances: tuple[float, ...]


def fit_rounds(
    prior: Any, simulator: Callable[..., Any], observation: Any, *, rounds: int = 3, simulations: int = 1000,
    flow: str | Recipe | Flow = "spline", embedding: nn.Module | None = None, mass: float = 1e-4, seed: int = 0,
    runner: Runner | None = None, folder: str | Path | None = None, batched: bool = False, progress: bool = True,
    training: Mapping[str, Any] | None = None,
) -> Rounds:  # fmt: skip
    r"""Truncated sequential neural posterior estimation: later simulations come from the prior where the posterior lives.

    Round r simulates from the prior restricted to the highest-density region of q_{r-1}(theta | observation) that holds all but
    `mass` of it. Within the newest region all simulations so far are distributed as the prior is, so that the plain likelihood
    is the right loss: no weights, no leakage to correct.

    Arguments:
        simulator, runner, batched: see `simulate`.
        simulations: per round; `rounds * simulations` is the budget.
        folder: simulations are kept there, round by round; a later call with the same arguments goes on.
        the others: see `fit_posterior`.

    Source: Truncated proposals for scalable and hassle-free simulation-based inference, Deistler et al. 2022, arXiv 2210.04815.
    """
    known = as_prior(prior)
    rounds, simulations = integer("rounds", rounds, 1, 1000), integer("simulations", simulations, 20, 2**40)
    region: Region | None = None
    everything: Simulations | None = None
    posterior: AmortisedPosterior | None = None
    acceptances: list[float] = []
    for number in range(rounds):
        randomness = Randomness(seed, f"fit_rounds {number}", dtype=known.reference.dtype)
        truncated = None if region is None else TruncatedPrior(known, region)
        theta = known.draw(simulations, randomness) if truncated is None else truncated.draw(simulations, randomness)
        if truncated is not None:
            acceptances.append(truncated.acceptance)
            _LOG.info("round %d: %.3g of the prior is left", number + 1, truncated.acceptance)
        new = simulate(
            simulator, theta=theta, seed=seed + 1_000_003 * number, runner=runner, batched=batched, progress=progress,
            folder=None if folder is None else Path(folder) / f"round-{number}",
        )  # fmt: skip
        everything = new if everything is None else everything + new
        inside = torch.ones_like(everything.good) if region is None else region.check(everything.theta)
        posterior = fit_posterior(
            known, everything.theta[inside], everything.y[inside], flow=flow, embedding=embedding, seed=seed + number,
            progress=progress, training=training,
        )  # fmt: skip
        if region is not None:
            posterior = posterior.with_prior(TruncatedPrior(known, region))
        if number + 1 < rounds:
            region = Region(posterior.bind(observation), mass=mass, seed=seed + number, outer=region)
    assert posterior is not None and everything is not None
    return Rounds(posterior, everything, tuple(acceptances))
