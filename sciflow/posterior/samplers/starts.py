"""Where chains start."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.prior import as_prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.target import Target

__all__ = ["chain_starts"]

_ROUNDS = 20


def chain_starts(start: Any, target: Target, chains: int, randomness: Randomness) -> Tensor:
    """x (chains, *event) with a positive density: given, or draws of a given distribution, or of the prior.

    R-hat compares chains: starts have to be wider than the target, as prior draws are, to tell of modes.

    Raises `UserError` if there is nothing to start from, the shape is wrong, or the density is 0 at a start.
    """
    if isinstance(start, Tensor):
        if start.shape != (chains, *target.event_shape):
            wanted = (chains, *target.event_shape)
            raise UserError(f"start has shape {tuple(start.shape)}, {chains} chains need {tuple(wanted)}")
        x = start.to(target.device, target.dtype)
        with torch.no_grad():
            bad = ~target.log_prob(x).isfinite()
        if bool(bad.any()):
            raise UserError(f"the density is 0 at {int(bad.sum())} of {chains} starts (first: chain {int(bad.nonzero()[0])})")
        return x
    if start is None:
        start = getattr(target, "prior", None)
        if start is None:
            raise UserError(f"{type(target).__name__} has no prior to start from: give start, a tensor or a distribution")
    prior = as_prior(start)
    if prior.event_shape != target.event_shape:
        raise UserError(f"start has event shape {tuple(prior.event_shape)}, the target {tuple(target.event_shape)}")
    x = prior.draw(chains, randomness).to(target.dtype)
    for _ in range(_ROUNDS):
        with torch.no_grad():
            bad = ~target.log_prob(x).isfinite()
        if not bool(bad.any()):
            return x
        x = torch.where(bad.reshape(-1, *[1] * (x.dim() - 1)), prior.draw(chains, randomness).to(target.dtype), x)
    nothing = f": {target.why_nothing()}" if bool(bad.all()) else ""
    raise UserError(
        f"the density is 0 at {int(bad.sum())} of {chains} starts after {_ROUNDS} draws each{nothing}; give better starts"
    )
