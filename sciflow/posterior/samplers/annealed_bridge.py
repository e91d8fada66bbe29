"""The geometric path from a base distribution to the target, in unconstrained coordinates."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.posterior.moves import Density
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers.proposal import as_proposal
from sciflow.posterior.target import Target, Unconstrained, value_and_gradient

__all__ = ["Bridge"]


class Bridge:
    r"""log p_b(u) = log q(u) + b r(u),   r = log p~ - log q, b from 0 to 1, at u in R^n with x = f(u).

    For a `Problem` and its own prior r is the log-likelihood, and the prior is evaluated once. Densities in u have the
    Jacobian of f in them; r has none. Where r = -inf, so is log p_b for b > 0.

    Arguments:
        target: what is reached at b = 1.
        base: where draws start, a normalised distribution; the prior of a `Problem` if None.
    """

    def __init__(self, target: Target, base: Any = None) -> None:
        self.target, self.base = target, as_proposal(base, target)
        self.coordinates = Unconstrained(target)
        self.event_shape, self.features = self.coordinates.event_shape, self.coordinates.features
        self.from_prior = isinstance(target, Problem) and self.base.prior is target.prior
        if not self.from_prior:
            self.base.prior.need_density()

    def draw(self, rows: int, randomness: Randomness) -> Tensor:
        """u (rows, *event) from the base."""
        return self.coordinates.unconstrain(self.base.prior.draw(rows, randomness).to(self.target.dtype)).detach()

    def pieces(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """log q(u) and r(u), (B,) each; differentiable."""
        x = self.coordinates.transform(u)
        ladj = self.coordinates.transform.log_abs_det_jacobian(u, x).reshape(len(u), -1).sum(-1)
        inside = x.isfinite().reshape(len(u), -1).all(1)
        x = torch.where(inside.reshape(-1, *[1] * (x.dim() - 1)), x, torch.zeros_like(x))
        if self.from_prior:
            assert isinstance(self.target, Problem)
            log_q, ratio = self.target.log_prior(x), self.target.log_likelihood(x)
        else:
            log_q = self.base.prior.log_prob(x, self.target.calls)
            ratio = self.target.log_prob(x) - log_q
        known = inside & (log_q > -torch.inf) & ~ratio.isnan()
        return torch.where(known, log_q + ladj, -torch.inf), torch.where(known, ratio, -torch.inf)

    def log_prob(self, u: Tensor, beta: float | Tensor) -> Tensor:
        """log p_b(u) (B,) for one b or one per row."""
        return joined(*self.pieces(u), beta)

    def final(self, u: Tensor) -> Tensor:
        """log p~(u) (B,), of the target."""
        return self.log_prob(u, 1.0)

    def density(self, beta: float | Tensor) -> Density:
        """u -> log p_b(u) and its gradient, counted."""

        def density(u: Tensor) -> tuple[Tensor, Tensor]:
            self.target.calls.gradient += len(u)
            return value_and_gradient(lambda point: self.log_prob(point, beta), u)

        return density

    def value(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """`pieces` without gradient."""
        with torch.no_grad():
            return self.pieces(u)


def joined(log_q: Tensor, ratio: Tensor, beta: float | Tensor) -> Tensor:
    """log q + b r with 0 (-inf) = 0."""
    b = torch.as_tensor(beta, dtype=log_q.dtype, device=log_q.device)
    return log_q + torch.where(b > 0, b * torch.where(b > 0, ratio, 0), 0)
