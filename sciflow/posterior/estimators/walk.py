"""What guided estimators share: a counted field, the residual of the data, and rows in chunks."""

from __future__ import annotations

from abc import abstractmethod
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.likelihoods.gaussian import Gaussian
from sciflow.posterior.method import Estimator
from sciflow.posterior.operators.base import Linear, Operator
from sciflow.posterior.operators.identity import Identity
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Result
from sciflow.transport.field import Field, FunctionField
from sciflow.transport.paths.base import AffinePath

__all__ = ["Guided", "Walk", "counted_field", "steps_of"]


def counted_field(problem: Problem, rows: int) -> Field:
    """The velocity field of the prior, which counts the rows that it is asked for."""
    field = problem.prior.field(rows)
    if not isinstance(field.path, AffinePath) or field.no_score is not None:
        reason = field.no_score or f"the path {field.path!r} is not affine"
        raise UserError(f"guided methods need an affine path from a standard normal base: {reason}")

    def velocity(t: Tensor, x: Tensor) -> Tensor:
        problem.calls.velocity += len(x)
        return field(t, x)

    return FunctionField(velocity, field)


class Walk:
    """One batch of rows on its way from noise to data.

    `operator` is that of the problem or the identity, `sigma` the standard deviation of normal noise, `y` the observation.
    """

    path: AffinePath

    def __init__(self, problem: Problem, rows: int, randomness: Randomness) -> None:
        self.problem, self.randomness, self.rows = problem, randomness, rows
        self.field = counted_field(problem, rows)
        self.path = self.field.path  # type: ignore[assignment]
        self.operator: Operator = Identity(problem.event_shape) if problem.operator is None else problem.operator

    @property
    def y(self) -> Tensor:
        """Raises `UserError` if the problem has no observation."""
        if self.problem.observation is None:
            raise UserError("the method needs an observation: a likelihood that is a function of x hides it")
        return self.problem.observation

    @property
    def sigma(self) -> float:
        """Raises `UserError` unless the noise is normal with one standard deviation."""
        likelihood = self.problem.likelihood
        if not isinstance(likelihood, Gaussian) or likelihood.sigma.numel() != 1:
            raise UserError(f"the method needs normal noise of one standard deviation, not {likelihood!r}")
        return float(likelihood.sigma)

    @property
    def linear(self) -> Linear:
        """Raises `UserError` unless the operator is linear."""
        if not isinstance(self.operator, Linear):
            raise UserError(f"the method needs a linear operator, {type(self.operator).__name__} is none")
        return self.operator

    def normal(self) -> Tensor:
        """Standard normals (rows, *event)."""
        return self.randomness.normal(self.rows, tuple(self.problem.event_shape))

    def at(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """Signal a(t) and noise s(t)."""
        return self.path.at(x.new_full((), t), x)[:2]

    def ends(self, t: float, x: Tensor) -> tuple[Tensor, Tensor]:
        """E[x_1 | x_t] and E[x_0 | x_t] from one velocity."""
        at = x.new_full((), t)
        v = self.field(at, x)
        return self.path.endpoint_from_velocity(v, x, at), self.path.noise_from_velocity(v, x, at)

    def residual_gradient(self, x: Tensor) -> Tensor:
        """J_A(x)' (y - A(x)): minus the gradient of half the squared residual. The noise level is not in it."""
        self.problem.calls.gradient += len(x)
        return self.operator.vjp(x, self.y - self.operator(x)).to(x.dtype)


class Guided(Estimator):
    """An estimator that walks rows from noise to data, chunk by chunk. Authors write `walk`."""

    chunk: int = 2**14

    @abstractmethod
    def walk(self, walk: Walk) -> Tensor:
        """The ends (rows, *event)."""

    def run(self, target: Any, draws: int, randomness: Randomness, *, progress: bool) -> Result:
        if not isinstance(target, Problem):
            raise UserError(f"{type(self).__name__} needs a Problem with a flow prior, got {type(target).__name__}")
        parts = []
        for first in range(0, draws, self.chunk):
            rows = min(self.chunk, draws - first)
            source = Randomness(randomness.seed, randomness.name, start=first, device=target.device, dtype=target.dtype)
            parts.append(self.walk(Walk(target, rows, source)).detach())
        x = torch.cat(parts)
        with torch.no_grad():
            log_likelihood = target.log_likelihood(x)
        return Result(x[None], log_likelihood=log_likelihood[None])


def steps_of(count: int, start: float = 0.0) -> list[tuple[float, float]]:
    """Pairs of times from `start` to 1."""
    return list(pairwise(start + (1 - start) * k / count for k in range(count + 1)))
