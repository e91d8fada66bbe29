"""The likelihood of the expected endpoint, along the ODE of the prior."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.posterior.estimators.walk import Guided, Walk
from sciflow.transport.field import FunctionField
from sciflow.transport.steppers.adaptive import Adaptive
from sciflow.transport.steppers.base import Stepper

__all__ = ["DPS"]


class DPS(Guided):
    r"""v + s (a' s - a s') / a  strength grad_x log p(y | A(E[x_1 | x_t = x])), for any operator and likelihood.

    The noise level enters through the likelihood; `smallest` is the time before which the factor, infinite at t = 0, stays
    what it is there. Small noise makes the equation stiff, hence the adaptive solver. Published implementations divide by the
    norm of the residual instead, which is not stiff and forgets the noise level.

    Arguments:
        stepper: a deterministic one; by default `Adaptive` with tolerance 1e-2.
        strength: of the guidance; 1 is what the formula says.

    Source: Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al. 2022, arXiv 2209.14687.
    """

    bias = "the likelihood of a noisy point is taken at the expected endpoint, whose uncertainty is ignored"
    right = "log-likelihoods linear in x with a normal prior of unit covariance"

    def __init__(
        self, stepper: Stepper | None = None, *, strength: float = 1.0, smallest: float = 1e-2, chunk: int = 2**14
    ) -> None:
        self.stepper = Adaptive(rtol=1e-2, atol=1e-2, max_steps=100_000) if stepper is None else stepper
        self.strength, self.smallest, self.chunk = strength, smallest, chunk

    def walk(self, walk: Walk) -> Tensor:
        problem, path = walk.problem, walk.path

        def guided(t: Tensor, x: Tensor) -> Tensor:
            with torch.enable_grad():
                point = x.detach().requires_grad_()
                v = walk.field(t, point)
                value = problem.log_likelihood(path.endpoint_from_velocity(v, point, t))
                (score,) = torch.autograd.grad(value.sum(), point)
            problem.calls.gradient += len(x)
            problem.calls.velocity_gradient += len(x)
            a, s, da, ds = path.at(t.clamp_min(self.smallest), x)
            return v.detach() + self.strength * s * (da * s - a * ds) / a * score

        with torch.no_grad():
            return self.stepper.solve(FunctionField(guided, walk.field), walk.normal(), 0.0, 1.0).x
