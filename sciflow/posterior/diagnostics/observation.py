"""Whether an observation is like the simulations a model was trained on, and the refusal if it is not."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.diagnostics.inputs import finite, flattened

__all__ = ["ObservationRefused", "check_observation", "observation_test"]

_UNIT, _FAR = 1e-100, 1e100  # whose squares are numbers
_SOURCE = "On the generalized distance in statistics, Mahalanobis 1936; Computing Nonparametric p-values, Vovk et al. 2005"


class ObservationRefused(UserError):
    """The observation is unlike the simulations; `test` is what a certificate records."""

    test: Test


def observation_test(
    observation: Tensor, simulated: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, level: float = 0.01
) -> Test:
    r"""Mahalanobis distance of the observation to simulated data in feature space, as a conformal p-value.

    Mean and covariance come from one half of the simulations, the other half ranks the observation:
    p = (1 + #{held-out distance >= observed distance}) / (1 + #held-out). If the observation comes from the prior predictive
    distribution, P(p < level) <= level whatever the distribution of the features.

    Arguments:
        observation: (*data).
        simulated: (n, *data), independent draws from the prior predictive distribution.
        features: (B, *data) -> (B, f); the flattened data by default.

    Raises `UserError` if the held-out half is too small for the level, for shapes that do not fit or values not finite.
    """
    observation, simulated = torch.as_tensor(observation), torch.as_tensor(simulated)
    if observation.shape != simulated.shape[1:]:
        raise UserError(f"the observation has shape {tuple(observation.shape)}, simulated data {tuple(simulated.shape[1:])}")
    if observation.is_complex() is not simulated.is_complex():
        raise UserError(f"the observation is {observation.dtype}, simulated data {simulated.dtype}: both complex, or real")
    finite("the observation", observation.unsqueeze(0))
    finite("simulated data", simulated)
    with torch.no_grad():
        both = torch.cat([observation.unsqueeze(0).to(simulated), simulated])
        f = flattened(both if features is None else torch.as_tensor(features(both)))
    training, held = f[1 : 1 + len(simulated) // 2], f[1 + len(simulated) // 2 :]
    if 1 / (1 + len(held)) >= level or len(training) < 2:
        raise UserError(f"{len(simulated)} simulations cannot reach the level {level:g}: give {2 * round(1 / level)} or more")
    # features have units of their own, and what is constant has that of its rounding errors
    mean = training.mean(0)
    unit = training.std(0).clamp_min(_UNIT).maximum(1e-13 * mean.abs())
    f, training, held = (((rows - mean) / unit).clamp(-_FAR, _FAR) for rows in (f, training, held))
    mean, centred = training.mean(0), training - training.mean(0)
    values, vectors = torch.linalg.eigh(centred.T @ centred / (len(training) - 1))
    # directions in which simulations do not vary get a floor: an observation that leaves them is far away
    scale = values.clamp_min(1e-10 * values[-1].clamp_min(torch.finfo(torch.float64).tiny)).rsqrt()
    distance = ((torch.cat([f[:1], held]) - mean) @ vectors * scale).norm(dim=1)
    p = (1 + int((distance[1:] >= distance[0]).sum())) / (1 + len(held))
    text = (
        f"share of {len(held)} held-out simulations at least as far from the others as the observation is: distance "
        f"{float(distance[0]):.3g} in {f.shape[1]} features, median of simulations {float(distance[1:].median()):.3g}"
    )
    return Test("observation within simulations", p, level, ">=", description=text, reference=_SOURCE)


def check_observation(
    observation: Tensor, simulated: Tensor, *, features: Callable[[Tensor], Tensor] | None = None, level: float = 0.01,
    force: bool = False,
) -> Test:  # fmt: skip
    """`observation_test`, and a refusal if it fails: a model knows nothing of data unlike all it has seen.

    With `force` there is no refusal and the failed test goes into the certificate. Refuses a good observation with
    probability <= level.

    >>> simulated = torch.randn(400, 2, generator=torch.Generator().manual_seed(0))
    >>> check_observation(torch.tensor([0.5, -0.5]), simulated).outcome
    'passed'
    >>> check_observation(torch.tensor([9.0, 0.0]), simulated)
    Traceback (most recent call last):
    ...
    sciflow.posterior.diagnostics.observation.ObservationRefused: the observation is unlike the simulations (p = 0.00498 ...
    """
    test = observation_test(observation, simulated, features=features, level=level)
    if test.outcome == "failed" and not force:
        error = ObservationRefused(
            f"the observation is unlike the simulations (p = {test.value:.3g} < {level:g}; {test.description}): "
            "check its units and the prior's range, or say force=True to have it recorded as failed"
        )
        error.test = test
        raise error
    return test
