"""The posterior under a prior that is blurred by noise: what denoisers and linear measurements say of it together."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.posterior.likelihoods.gaussian import Gaussian
from sciflow.posterior.operators.base import Linear
from sciflow.posterior.operators.identity import Identity
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.transport.paths.base import AffinePath

__all__ = ["NoisyPosterior"]


class NoisyPosterior:
    r"""p_s(x) N(y; A x, sigma^2), where p_s is the prior blurred by noise of standard deviation s: p_s = p * N(0, s^2).

    With the denoiser D(x, s) = E[x_1 | x_1 + s noise = x] the score of p_s is (D - x) / s^2, so that

        P = (A'A / sigma^2 + 1 / s^2)^-1,   gradient of the log-density = P^-1 (m(x) - x),   m(x) = P (A'y / sigma^2 + D / s^2).

    Arguments:
        problem: a prior that is a `TransportFlow` on an affine path, Gaussian noise of one sigma, a `Linear` operator.
        bf16: evaluate the velocity in bfloat16 products.

    Raises `UserError` for other problems.
    """

    def __init__(self, problem: Problem, *, bf16: bool = False) -> None:
        likelihood, operator = problem.likelihood, problem.operator
        if not isinstance(likelihood, Gaussian) or likelihood.sigma.numel() != 1:
            raise UserError(f"the likelihood is {likelihood!r}: Gaussian noise of one sigma is needed (whiten the data)")
        if operator is not None and not isinstance(operator, Linear):
            raise UserError(f"{type(operator).__name__} is not linear: data are brought in by linear operators only")
        path = problem.prior.field(1).path
        if not isinstance(path, AffinePath):
            raise UserError(f"a flow on {path!r} is no denoiser: an affine path is needed")
        problem.prior.field(1).need_score()
        self.problem, self.bf16, self.path = problem, bf16, path
        self.operator: Linear = Identity(tuple(problem.event_shape)) if operator is None else operator
        self.variance = float(likelihood.sigma) ** 2
        assert problem.observation is not None
        self.backward = self.operator.adjoint(problem.observation[None])
        self.fields: dict[int, Any] = {}

    def denoised(self, x: Tensor, s: float) -> Tensor:
        """D(x, s) (B, *event)."""
        rows = len(x)
        if rows not in self.fields:
            self.fields[rows] = self.problem.prior.field(rows)
        self.problem.calls.velocity += rows
        level = torch.tensor(s, dtype=x.dtype, device=x.device)
        t = self.path.time(torch.atan2(torch.ones_like(level), level))
        scale = self.path.norm(t) / torch.hypot(torch.ones_like(level), level)
        with torch.autocast(x.device.type, torch.bfloat16) if self.bf16 else nullcontext():
            found: Tensor = self.fields[rows].endpoint(t.expand(rows), x * scale)
        return found.to(x.dtype)

    def mean(self, denoised: Tensor, r: float) -> Tensor:
        """(A'A / sigma^2 + 1 / r^2)^-1 (A'y / sigma^2 + denoised / r^2): the posterior mean for the prior N(denoised, r^2)."""
        shift = self.variance / r**2
        return self.operator.normal_solve(self.backward + shift * denoised, shift)

    def noise(self, rows: int, r: float, randomness: Randomness) -> Tensor:
        """Draws of N(0, (A'A / sigma^2 + 1 / r^2)^-1): (rows, *event)."""
        shift = self.variance / r**2
        return self.variance**0.5 * self.operator.normal_noise(rows, shift, randomness)

    def residual(self, x: Tensor) -> Tensor:
        """|y - A x|^2 / sigma^2 (B,): for a draw of the posterior, chi-squared with as many degrees as there are real data."""
        problem = self.problem
        problem.calls.likelihood += len(x)
        assert problem.observation is not None
        gap = (problem.observation - self.operator(x)).reshape(len(x), -1)
        square = torch.view_as_real(gap.resolve_conj()).square().flatten(1) if gap.is_complex() else gap.square()
        return square.double().sum(1) / self.variance

    @property
    def data(self) -> int:
        """How many real numbers were measured."""
        observation = self.problem.observation
        assert observation is not None
        return observation.numel() * (2 if observation.is_complex() else 1)
