"""Proposals: distributions that are drawn from and whose density is known."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.posterior.calls import Calls
from sciflow.posterior.prior import Prior
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.target import Target
from sciflow.store.source import source

__all__ = ["Proposal", "as_proposal"]


class Proposal:
    """q(x): draws with their log-density.

    Arguments:
        distribution: what `Prior` accepts: a flow, `flow(condition)`, or a torch distribution without batch shape. Densities
            that come with a random error are refused, since weights made of them would be wrong.

    >>> proposal = Proposal(torch.distributions.MultivariateNormal(torch.zeros(2), torch.eye(2)))
    >>> x, log_q = proposal.draw(3, Randomness(0, "doctest"))
    >>> x.shape, bool((log_q == proposal.log_prob(x)).all())
    (torch.Size([3, 2]), True)
    """

    def __init__(self, distribution: Any) -> None:
        self.prior = distribution if isinstance(distribution, Prior) else Prior(distribution)
        self.prior.need_density()
        self.event_shape = self.prior.event_shape

    @property
    def support(self) -> constraints.Constraint:
        return self.prior.support

    @torch.no_grad()
    def draw(self, rows: int, randomness: Randomness, calls: Calls | None = None) -> tuple[Tensor, Tensor]:
        """x (rows, *event) and log q(x) (rows,), in one pass through a flow."""
        if self.prior.flow is None:
            with self.prior.counting(calls):
                x = self.prior.draw(rows, randomness)
            return x, self.prior.density(x, calls)
        found = source(self.prior.distribution)
        uniform = randomness.uniform(rows, found.uniforms).reshape(rows, *found.batch_shape, found.uniforms)
        drawn = found.draw(uniform, True)
        assert drawn.log_prob is not None
        if calls is not None and drawn.evaluations is not None:
            velocity = drawn.evaluations
            calls.velocity += int(velocity.sum()) if isinstance(velocity, Tensor) else rows * int(velocity)
        return drawn.x.reshape(rows, *self.event_shape), drawn.log_prob.reshape(rows)

    @torch.no_grad()
    def log_prob(self, x: Tensor, calls: Calls | None = None) -> Tensor:
        """log q(x) (B,); `calls` counts velocity evaluations, as those of `draw`."""
        return self.prior.density(x, calls)

    def need_constant(self) -> None:
        """Raises `UserError` if log q is known up to a constant only."""
        if not self.prior.normalised:
            raise UserError(f"{self.prior!r} has a density without its constant: weights made of it are wrong by a factor")

    def __repr__(self) -> str:
        return repr(self.prior)


def as_proposal(given: Any, target: Target) -> Proposal:
    """The proposal given, or the target's prior where that is None. Raises `UserError` if the event shapes differ."""
    if given is None:
        prior = getattr(target, "prior", None)
        if prior is None:
            raise UserError(f"{type(target).__name__} has no prior to propose from: give a proposal (a flow or a distribution)")
        found = Proposal(prior)
    else:
        found = given if isinstance(given, Proposal) else Proposal(given)
    if found.event_shape != target.event_shape:
        raise UserError(
            f"the proposal has event shape {tuple(found.event_shape)}, the target {tuple(target.event_shape)}: they must agree"
        )
    return found
