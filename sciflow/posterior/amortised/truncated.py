"""A prior cut down to where a posterior lives."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.distributions import constraints

from sciflow.errors import UserError
from sciflow.posterior.amortised.bound import BoundPosterior
from sciflow.posterior.prior import Prior
from sciflow.posterior.randomness import Randomness

__all__ = ["Region", "TruncatedPrior"]

_BUDGET = 2_000_000  # prior draws looked at before giving up


class Region(constraints.Constraint):
    """Where log q(theta | y) is at least `level`, within the support of the prior and of an outer region.

    Arguments:
        bound: the learned posterior of one observation.
        mass: how much of q may lie outside, as the level is set.
        draws: number of draws of q that set the level.
    """

    event_dim = 1

    def __init__(
        self, bound: BoundPosterior, *, mass: float = 1e-4, draws: int = 20_000, seed: int = 0, outer: Region | None = None
    ) -> None:
        if not 0 < mass < 1:
            raise UserError(f"mass={mass}: the share of the posterior that may be cut off lies between 0 and 1")
        self.bound, self.mass, self.outer = bound, mass, outer
        u = Randomness(seed, "Region").uniform(draws, bound.uniforms)
        _, log_q = bound.from_uniform(u)
        assert log_q is not None
        self.level = float(log_q.quantile(mass)) if draws < 2**23 else float(log_q.kthvalue(max(int(mass * draws), 1)).values)

    def check(self, value: Tensor) -> Tensor:
        inside = self.bound.log_prob(value.double()) >= self.level
        return inside if self.outer is None else inside & self.outer.check(value)

    def __repr__(self) -> str:
        return f"Region(all but {self.mass:g} of the posterior)"


class TruncatedPrior:
    r"""p(theta) restricted to a region; `log_prob` is that of the prior inside, without the constant, and -inf outside.

    Draws are rejected from the prior; where that would take too many (acceptance below `least`), sampling-importance-resampling
    takes one of `oversampling` proposals of the learned posterior with weight p(theta) / q(theta) for each draw.

    Source: Truncated proposals for scalable and hassle-free simulation-based inference, Deistler et al. 2022, arXiv 2210.04815.
    """

    batch_shape = torch.Size()
    normalised = False

    def __init__(self, prior: Prior, region: Region, *, least: float = 1e-3, oversampling: int = 256) -> None:
        self.prior, self.region, self.least, self.oversampling = prior, region, least, oversampling
        self.event_shape = prior.event_shape
        self.acceptance = float("nan")

    @property
    def support(self) -> constraints.Constraint:
        return self.region

    def log_prob(self, theta: Tensor) -> Tensor:
        return torch.where(self.region.check(theta), self.prior.log_prob(theta), -torch.inf)

    def sample(self, shape: Any = ()) -> Tensor:
        """With torch's generator."""
        shape = torch.Size(shape)
        seed = int(torch.randint(2**53, ()))
        return self.draw(max(shape.numel(), 1), Randomness(seed, "TruncatedPrior")).reshape(*shape, *self.event_shape)

    @torch.no_grad()
    def draw(self, rows: int, randomness: Randomness) -> Tensor:
        """(rows, D), the same for the same randomness."""
        kept: list[Tensor] = []
        found = looked = 0
        size = max(4096, rows)
        while found < rows and looked < _BUDGET:
            theta = self.prior.draw(size, randomness)
            inside = theta[self.region.check(theta)]
            kept.append(inside)
            found, looked = found + len(inside), looked + size
            if found / looked < self.least and looked >= min(10 / self.least, _BUDGET):
                break
        self.acceptance = found / looked
        if found < rows:
            kept.append(self._resampled(rows - found, randomness).to(kept[0]))
        return torch.cat(kept)[:rows]

    def _resampled(self, rows: int, randomness: Randomness) -> Tensor:
        bound, kept = self.region.bound, []
        for piece in torch.arange(rows).split(256):
            count = len(piece) * self.oversampling
            theta, log_q = bound.from_uniform(randomness.uniform(count, bound.uniforms))
            log_weight = self.log_prob(theta.to(self.prior.reference.dtype)).double() - log_q  # type: ignore[operator]
            table = log_weight.reshape(len(piece), self.oversampling)
            if not bool((table > -torch.inf).any(1).all()):
                raise UserError("no proposal of the posterior lies inside the prior: the observation is not covered by it")
            # the largest of log-weight plus Gumbel noise is a draw with those weights
            gumbel = -(-randomness.uniform(count, 1)[:, 0].log()).log()
            best = (table + gumbel.reshape(table.shape)).argmax(1)
            kept.append(theta.reshape(len(piece), self.oversampling, -1)[torch.arange(len(piece)), best])
        return torch.cat(kept)

    def __repr__(self) -> str:
        return f"TruncatedPrior({self.prior!r}, {self.region!r})"
