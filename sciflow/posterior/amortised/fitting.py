"""Neural posterior estimation: from simulations to a posterior for any observation."""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.flows.condition import Encoder, encoder_for
from sciflow.flows.set_encoder import SetEncoder
from sciflow.posterior.amortised.coordinates import Coordinates, bounds_of
from sciflow.posterior.amortised.encoders import Embedded, Tokens
from sciflow.posterior.amortised.held_out import SeenRows
from sciflow.posterior.amortised.members import train_members
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.recipes import Given, JointRecipe, Recipe, recipe_of
from sciflow.posterior.amortised.scaling import Scaling, checked_rows, finite_rows, parts, rows_of
from sciflow.posterior.amortised.simulation_distance import SimulationDistance, summary
from sciflow.posterior.prior import Prior, as_prior

__all__ = ["fit_posterior", "usable"]

_LOG = logging.getLogger(__name__)
_FEWEST = 20


def fit_posterior(
    prior: Any, theta: Tensor, y: Any, *, flow: str | Recipe | Flow = "spline", embedding: nn.Module | None = None,
    exchangeable: bool = False, validation: float = 0.1, seed: int = 0, progress: bool = True,
    checkpoint: str | Path | None = None, training: Mapping[str, Any] | None = None,
) -> AmortisedPosterior:  # fmt: skip
    r"""Learn p(theta | y) for every y from simulations theta_i ~ prior, y_i ~ p(y | theta_i).

    Parameters are brought to R^n by `Coordinates`, so that no draw leaves the prior's bounds; data are standardised.

    Arguments:
        prior: a torch distribution over (D,) whose support is a product of intervals, or whatever `Prior` takes.
        theta: (N, D).
        y: (N, ...); or {"observations": (N, M, d), "mask": (N, M)} for a variable number of observations (True = present), or
            with entries (N, C) and a mask (N, C) for data that are incomplete (flow="joint").
        flow: "spline", "matching" (flow matching), "joint" (transformer over parameters and data), a `Recipe`, or a `Flow` over
            D parameters with the (standardised, or embedded) data as its condition.
        embedding: network (B, *y shape) -> (B, features), trained along.
        exchangeable: the members of {"observations": ...} have no order: they enter through a `SetEncoder`, or as tokens
            without place.
        validation: share of the simulations held out, which ends the training and chooses the weights.
        checkpoint: folder; an interrupted training goes on from there.
        training: arguments of `sciflow.training.fit` over those of the recipe.

    Simulations with NaN or infinity in theta or in what is present of y are left out, and counted: the certificate names their
    share. Raises `UserError` if parameters are outside of the prior, or hardly any simulation is left.

    Source: The frontier of simulation-based inference, Cranmer, Brehmer and Louppe 2020, arXiv 1911.01429.

    >>> theta = torch.rand(200, 1)
    >>> prior = torch.distributions.Independent(torch.distributions.Uniform(torch.zeros(1), torch.ones(1)), 1)
    >>> posterior = fit_posterior(prior, theta, theta + 0.1 * torch.randn(200, 1), training={"epochs": 1}, progress=False)
    >>> posterior(torch.tensor([0.5]), 10).x.shape
    torch.Size([1, 10, 1])
    """
    known = as_prior(prior)
    theta, y, excluded = usable(known, theta, y)
    recipe = recipe_of(flow)
    coordinates = Coordinates(*bounds_of(known.support, theta.shape[1])).fit(theta)
    scaling = _scaling(y, exchangeable, recipe, embedding).fit(y)
    z = torch.cat([coordinates(piece)[0] for piece in theta.split(65536)]).float()
    scaled = scaling(y)
    features = summary(rows_of(scaled, torch.arange(1)), scaling.of_set).shape[1]
    distance = SimulationDistance(features, pooled=scaling.of_set).fit(scaled)

    def build(member: int) -> Flow:
        return _built(recipe, theta.shape[1], _encoder(scaled, scaling, recipe, embedding, member), seed + member, exchangeable)

    trained = train_members(
        recipe, build, z, scaled, validation=validation, seed=seed, progress=progress, checkpoint=checkpoint, training=training
    )
    seen = SeenRows.of(theta, y)
    posterior = AmortisedPosterior(trained.flows, coordinates, scaling, distance, seen, names=known.names)
    posterior.simulations.fill_(len(z))
    posterior.excluded.fill_(excluded)
    if trained.validation_loss is not None:
        posterior.validation_loss.fill_(trained.validation_loss)
    posterior.records, posterior.training_seconds = trained.records, trained.seconds
    return posterior.eval().with_prior(known)


def usable(prior: Prior, theta: Any, y: Any) -> tuple[Tensor, Any, int]:
    """Simulations without NaN and infinity, and how many had them.

    Raises `UserError` if the shapes do not fit, or hardly any are left.
    """
    theta = torch.as_tensor(theta)
    y = checked_rows(y, "the simulated data")
    rows = len(parts(y)[0])
    if theta.shape != (rows, *prior.event_shape) or theta.dim() != 2:
        raise UserError(
            f"theta has shape {tuple(theta.shape)}, y has {rows} rows, and the prior event shape {tuple(prior.event_shape)}: "
            "expected theta (N, D) with one row per simulation"
        )
    good = theta.isfinite().all(1) & finite_rows(y)
    excluded = rows - int(good.sum())
    if rows - excluded < _FEWEST:
        raise UserError(
            f"{excluded} of {rows} simulations failed or are not finite, {rows - excluded} are left: repair the simulator, or "
            "run more of them"
        )
    if excluded:
        _LOG.warning("%d of %d simulations failed or are not finite and are left out", excluded, rows)
        theta, y = theta[good], rows_of(y, good)
    return theta, y, excluded


def _scaling(y: Any, exchangeable: bool, recipe: Recipe, embedding: nn.Module | None) -> Scaling:
    values, mask = parts(y)
    if mask is None:
        if exchangeable:
            raise UserError('exchangeable=True needs y as {"observations": (N, M, d), "mask": (N, M)}')
        return Scaling(values.shape[1:], tokens=recipe.tokens)
    if embedding is not None:
        raise UserError("an embedding network takes a tensor, y has a mask: use flow='joint' or exchangeable=True without one")
    if exchangeable:
        if values.dim() != 3:
            raise UserError(f"exchangeable observations have shape {tuple(values.shape)}, expected (N, M, d)")
        return Scaling(values.shape[2:], of_set=True, tokens=recipe.tokens)
    if not recipe.tokens:
        raise UserError("y has a mask: use flow='joint' for missing entries, or exchangeable=True for sets")
    return Scaling(values.shape[1:], tokens=True)


def _encoder(scaled: Any, scaling: Scaling, recipe: Recipe, embedding: nn.Module | None, member: int) -> Encoder:
    values, mask = parts(scaled)
    if recipe.tokens:
        if embedding is not None:
            raise UserError("the joint transformer takes data as tokens, not through an embedding network")
        if values.dim() > 3 or (mask is None and values.dim() == 3 and values.shape[2] == 0):
            raise UserError(f"data of shape {tuple(values.shape[1:])} are no tokens (C,) or (M, d): use flow='spline'")
        return Tokens(values.shape[1], values.shape[2] if values.dim() == 3 else 1)
    if scaling.of_set:
        return SetEncoder(values.shape[2])
    if embedding is not None:
        own = embedding if member == 0 else copy.deepcopy(embedding)
        return own if isinstance(own, Encoder) else Embedded(values.shape[1:], own)
    return encoder_for(values.shape[1] if values.dim() == 2 else {"y": tuple(values.shape[1:])})


def _built(recipe: Recipe, parameters: int, encoder: Encoder, seed: int, exchangeable: bool) -> Flow:
    if isinstance(recipe, JointRecipe):
        return recipe.build(parameters, encoder, seed, exchangeable=exchangeable)
    if isinstance(recipe, Given) and recipe.flow.encoder.features != encoder.features:
        raise UserError(
            f"the flow has {recipe.flow.encoder.features} condition features, the data give {encoder.features}: build it with "
            f"condition={encoder.features}"
        )
    return recipe.build(parameters, encoder, seed)
