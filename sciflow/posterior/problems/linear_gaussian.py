"""Problems whose posterior is known in closed form: a Gaussian mixture prior, a matrix, normal noise."""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.likelihoods.gaussian import Gaussian
from sciflow.posterior.operators.dense import Dense
from sciflow.posterior.problem import Problem
from sciflow.posterior.problems.mixture import GaussianMixtureFlow

__all__ = ["LinearGaussian"]


class LinearGaussian:
    r"""y = A x + e with e ~ N(0, sigma^2 1) and a mixture prior: the posterior is a mixture too,

        S_k' = (S_k^-1 + A' A / sigma^2)^-1,  m_k' = S_k' (S_k^-1 m_k + A' y / sigma^2),
        w_k' \propto w_k N(y; A m_k, A S_k A' + sigma^2 1),  Z = sum_k w_k N(y; ...).

    Attributes: `problem` (a `Problem` in float64), `posterior` (a `GaussianMixtureFlow`, whose field is the exact conditional
    velocity), `log_evidence`.

    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0, 0.0]], 1.0), [[1.0, 0.0]], 1.0, [2.0])
    >>> [round(m, 6) for m in exact.posterior.mean().tolist()], round(exact.log_evidence, 4)
    ([1.0, 0.0], -2.2655)
    """

    def __init__(self, prior: GaussianMixtureFlow, matrix: Any, sigma: float, observation: Any) -> None:
        self.prior, self.sigma = prior, float(sigma)
        self.matrix = torch.as_tensor(matrix, dtype=torch.float64)
        self.observation = torch.as_tensor(observation, dtype=torch.float64)

    @cached_property
    def problem(self) -> Problem:
        return Problem(self.prior, self.observation.to(self.prior.dtype), Gaussian(self.sigma), Dense(self.matrix))

    @cached_property
    def posterior(self) -> GaussianMixtureFlow:
        means, covariances, log_weights = self._components
        return GaussianMixtureFlow(means, covariances, log_weights.softmax(0).clamp_min(1e-300), dtype=self.prior.dtype)

    @cached_property
    def log_evidence(self) -> float:
        return float(self._components[2].logsumexp(0))

    @cached_property
    def _components(self) -> tuple[Tensor, Tensor, Tensor]:
        a, y, network = self.matrix, self.observation, self.prior.network
        s, m = self.prior.component_covariances(), network.means
        noise = self.sigma**2 * torch.eye(len(a), dtype=a.dtype)
        data = a @ s @ a.T + noise  # (K, M, M)
        residual = y - m @ a.T
        solved = torch.linalg.solve(data, residual)
        means = m + (s @ a.T @ solved.unsqueeze(2)).squeeze(2)
        covariances = s - s @ a.T @ torch.linalg.solve(data, a @ s)
        covariances = 0.5 * (covariances + covariances.mT)
        log_weights = network.log_weights - 0.5 * (
            (residual * solved).sum(1) + torch.linalg.slogdet(data)[1] + len(y) * math.log(2 * math.pi)
        )
        return means, covariances, log_weights
