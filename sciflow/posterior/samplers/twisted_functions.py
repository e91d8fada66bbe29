"""Twists: what is believed, on the way, of the likelihood at the end."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.networks.time_network import expand_time
from sciflow.posterior.likelihoods.gaussian import Gaussian
from sciflow.posterior.operators.base import Linear, inner_product
from sciflow.posterior.problem import Problem
from sciflow.transport.field import Field
from sciflow.transport.part import Part
from sciflow.transport.paths.base import AffinePath

__all__ = ["DPSTwist", "NoTwist", "PiGDMTwist", "Twist", "Twisted"]

Twisted = tuple[Tensor, Tensor, Tensor, Tensor]  # velocity, E[noise | x], log twist (B,), its gradient in x


class Twist(Part, ABC):
    """log p~_t(y | x), positive everywhere: weights correct for it, so any twist gives the posterior; good ones sooner."""

    gradient = True

    def check(self, problem: Problem) -> None:
        """Raises `UserError` if the twist cannot be had for this problem."""

    @abstractmethod
    def value(self, problem: Problem, endpoint: Tensor, t: Tensor, path: AffinePath) -> tuple[Tensor, Tensor]:
        """log p~ (B,) given E[x_1 | x_t], and its gradient in that."""

    def __call__(self, problem: Problem, field: Field, t: Tensor, x: Tensor) -> Twisted:
        """From one evaluation of the field and one vector-Jacobian product."""
        problem.calls.velocity += len(x)
        assert isinstance(field.path, AffinePath)
        if not self.gradient:
            with torch.no_grad():
                v, noise = field.velocity_and_noise(t, x)
            return v, noise, torch.zeros(len(x), dtype=torch.float64, device=x.device), torch.zeros_like(x)
        problem.calls.velocity_gradient += len(x)
        with torch.enable_grad():
            point = x.detach().requires_grad_()
            v, noise = field.velocity_and_noise(t, point)
            endpoint = field.path.endpoint_from_velocity(v, point, t)
            log_twist, slope = self.value(problem, endpoint.detach(), t, field.path)
            (gradient,) = torch.autograd.grad(endpoint, point, slope)
        return v.detach(), noise.detach(), log_twist.double(), gradient


class NoTwist(Twist):
    """p~ = 1 until the end: the prior's particles, weighted by the likelihood once they have arrived."""

    gradient = False

    def value(self, problem: Problem, endpoint: Tensor, t: Tensor, path: AffinePath) -> tuple[Tensor, Tensor]:
        raise NotImplementedError


class PiGDMTwist(Twist):
    r"""N(y; A D, r^2 A A' + sigma^2) with D = E[x_1 | x_t] and r^2 = v d^2 / (v a^2 + d^2), v the variance of the data.

    Its gradient is J_D' A' (r^2 A A' + sigma^2)^-1 (y - A D): one solve in closed form, one product with the Jacobian.

    Arguments:
        variance: v; 1 for standardised data.

    Source: Pseudoinverse-Guided Diffusion Models for Inverse Problems, Song et al. 2023, ICLR; Training-free Linear Image
    Inverses via Flows, Pokle et al. 2023, arXiv 2310.04432.
    """

    def __init__(self, variance: float = 1.0) -> None:
        if not variance > 0:
            raise UserError(f"variance={variance}: give the variance of the data, > 0")
        self.variance = variance

    def check(self, problem: Problem) -> None:
        likelihood, operator = problem.likelihood, problem.operator
        if not isinstance(likelihood, Gaussian) or likelihood.sigma.numel() != 1:
            raise UserError(f"PiGDMTwist needs Gaussian noise of one sigma, the likelihood is {likelihood!r}: use DPSTwist()")
        if operator is not None and not isinstance(operator, Linear):
            raise UserError(f"PiGDMTwist needs a linear operator, not {type(operator).__name__}: use DPSTwist()")

    def value(self, problem: Problem, endpoint: Tensor, t: Tensor, path: AffinePath) -> tuple[Tensor, Tensor]:
        a, d, _, _ = path.coefficients(t.to(endpoint.dtype))
        r2 = self.variance * d**2 / (self.variance * a**2 + d**2)
        assert isinstance(problem.likelihood, Gaussian) and problem.observation is not None
        sigma2 = problem.likelihood.sigma.to(endpoint.dtype).reshape(()) ** 2
        residual = problem.observation - problem.prediction(endpoint)
        if problem.operator is None:
            solved = residual / (r2 + sigma2)
            return -0.5 * inner_product(residual, solved), solved
        assert isinstance(problem.operator, Linear)
        solved = problem.operator.marginal_solve(residual, r2, sigma2)
        problem.calls.gradient += len(endpoint)
        return -0.5 * inner_product(residual, solved), problem.operator.adjoint(solved)


class DPSTwist(Twist):
    """p(y | D), the exact likelihood at D = E[x_1 | x_t]: for any likelihood and any differentiable operator.

    It is too sharp far from the data: powers below 1 there, `power` + (1 - power) t, keep particles apart.

    Source: Diffusion Posterior Sampling for General Noisy Inverse Problems, Chung et al. 2022, arXiv 2209.14687.
    """

    def __init__(self, power: float = 0.0) -> None:
        if not 0 <= power <= 1:
            raise UserError(f"power={power}: give a power of the likelihood at t = 0, between 0 and 1")
        self.power = power

    def value(self, problem: Problem, endpoint: Tensor, t: Tensor, path: AffinePath) -> tuple[Tensor, Tensor]:
        problem.calls.gradient += len(endpoint)
        power = self.power + (1 - self.power) * t.to(endpoint.dtype)
        with torch.enable_grad():
            point = endpoint.detach().requires_grad_()
            value = problem.log_likelihood(point)
            (slope,) = torch.autograd.grad(value.sum(), point)
        slope = torch.where(expand_time(value.isfinite(), slope), slope, 0)
        # -inf on the way would end a particle that may still arrive
        return power * value.detach().clamp_min(-1e10), power * slope
