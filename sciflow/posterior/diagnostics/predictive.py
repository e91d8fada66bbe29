"""Posterior predictive checks: does the fitted model make data like the observation."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import finite
from sciflow.posterior.diagnostics.ranks import holm
from sciflow.posterior.likelihoods.base import Likelihood
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Result

__all__ = ["posterior_predictive", "predictive_tests"]

Statistic = Callable[[Tensor], Tensor]
_SOURCE = "Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman, Meng and Stern 1996"


def _magnitude(data: Tensor) -> Tensor:
    return (data.abs() if data.is_complex() else data).unsqueeze(-1).flatten(1).double()


STATISTICS: dict[str, Statistic] = {
    "mean": lambda data: _magnitude(data).mean(1),
    "standard deviation": lambda data: _magnitude(data).std(1, correction=0),
    "minimum": lambda data: _magnitude(data).amin(1),
    "maximum": lambda data: _magnitude(data).amax(1),
}


def predictive_tests(
    observation: Tensor, replicated: Tensor, statistics: Mapping[str, Statistic] | None = None, *, level: float = 0.01,
    discrepancies: Mapping[str, tuple[Tensor, Tensor]] | None = None,
) -> list[Test]:  # fmt: skip
    """Two-sided predictive p-values of statistics T(data), Holm-adjusted together.

    p = 2 min(P(T_rep >= T_obs), P(T_rep <= T_obs)), with the observation counted once. As data are used twice p is not uniform
    but concentrated around its middle: the false-alarm rate is below the level, and so is the power. No adjusted p-value of K
    statistics is below 2 K / (1 + S).

    Arguments:
        observation: (*data).
        replicated: data simulated from posterior draws (S, *data).
        statistics: name -> (B, *data) -> (B,); by default mean, standard deviation, minimum and maximum (of magnitudes, for
            complex data).
        discrepancies: name -> T(observation, theta_s) (S,) and T(replicate_s, theta_s) (S,): of data and parameters.

    Raises `UserError` if that bound is not below the level, for shapes that do not fit and for values that are not finite.

    Source: Posterior Predictive Assessment of Model Fitness via Realized Discrepancies, Gelman, Meng and Stern 1996.
    """
    if observation.shape != replicated.shape[1:] or len(replicated) < 1:
        raise UserError(f"the observation has shape {tuple(observation.shape)}, the replicated data {tuple(replicated.shape)}")
    if observation.is_complex() is not replicated.is_complex():
        raise UserError(f"the observation is {observation.dtype}, replicated data {replicated.dtype}: both complex, or real")
    finite("replicated data", torch.view_as_real(replicated) if replicated.is_complex() else replicated)
    pairs = {}
    for name, statistic in (STATISTICS if statistics is None else statistics).items():
        values = torch.as_tensor(statistic(torch.cat([observation.unsqueeze(0).to(replicated), replicated])))
        if values.shape != (len(replicated) + 1,):
            raise UserError(f"statistic {name!r} of {len(replicated) + 1} rows has shape {tuple(values.shape)}")
        pairs[name] = values[:1].expand(len(replicated)), values[1:]
    pairs |= dict(discrepancies or {})
    if not pairs:
        raise UserError("no statistic was given")
    count, found = len(replicated), []
    if 2 * len(pairs) / (1 + count) >= level:
        raise UserError(
            f"{count} replicated data sets cannot reach the level {level:g} in {len(pairs)} statistics: take "
            f"{math.floor(2 * len(pairs) / level)} or more"
        )
    for observed, values in pairs.values():
        above, below = int((values >= observed).sum()), int((values <= observed).sum())
        found.append(min(1.0, 2 * (1 + min(above, below)) / (1 + count)))
    return [
        Test(f"predictive {name}", p, level, ">=", reference=_SOURCE,
             description=f"Holm-adjusted two-sided p-value of {count} replicated data sets: {_summary(*pairs[name])}")
        for name, p in zip(pairs, holm(np.array(found)), strict=True)
    ]  # fmt: skip


def posterior_predictive(
    result: Result, problem: Problem, statistics: Mapping[str, Statistic] | None = None, *, draws: int = 4000,
    level: float = 0.01, seed: int = 0,
) -> list[Test]:  # fmt: skip
    """`predictive_tests` of data simulated from the result's draws (weighted ones are resampled), and of the log-likelihood
    as a discrepancy: log p(y_obs | theta_s) against log p(y_s | theta_s). Of `Masked` data statistics get the observed ones
    alone, (B, observed).

    Raises `UserError` if the problem's likelihood is a function, which cannot simulate.
    """
    likelihood, observation = problem.likelihood, problem.observation
    if not isinstance(likelihood, Likelihood) or observation is None:
        raise UserError("a likelihood given as a function cannot simulate data: use predictive_tests with your own replicates")
    x = result.resampled(draws, seed=seed).to(problem.device, problem.dtype)
    replicated = problem.simulate(x, Randomness(seed, "predictive", device=problem.device, dtype=problem.dtype))
    prediction = problem.prediction(x)
    pair = likelihood.log_prob(observation, prediction), likelihood.log_prob(replicated, prediction)
    if likelihood.observed is not None:
        seen = likelihood.observed.expand(observation.shape)
        observation, replicated = observation[seen], replicated[:, seen]
    return predictive_tests(observation, replicated, statistics, level=level, discrepancies={"log-likelihood": pair})


def _summary(observed: Tensor, values: Tensor) -> str:
    return f"observed {float(observed.double().mean()):.4g}, replicated {float(values.double().mean()):.4g}"
