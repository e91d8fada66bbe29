"""Wrappers of time priors: the same target with less variance."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.times.base import TimeDensity, TimePrior

__all__ = ["Importance", "Stratified"]


class Importance(TimePrior):
    r"""Times from another density, weighted so that the mean loss is that of uniform times on [low, high] of the density:

        t ~ q(t) = (1 - share) p(t) + share / (high - low),    weight = 1 / ((high - low) q(t)).

    Draws concentrate where p does, the target stays \int loss(t) dt / (high - low). The `share` of uniform times keeps the
    weights below 1 / share: without it those of a logit-normal or a steep power law have infinite variance.

    Raises `UserError` if the share is outside [0, 1], or 0 for a density that vanishes somewhere.

    Sources: Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, Zheng et al. 2023, arXiv 2305.03935
    (importance-sampled time); Weighted average importance sampling and defensive mixture distributions, Hesterberg 1995,
    Technometrics 37, 185 (the uniform share).

    >>> from sciflow.transport.times import PowerLaw
    >>> t, weight = Importance(PowerLaw(2.0))(1000, torch.zeros(1))
    >>> bool(weight.max() <= 10)
    True
    """

    def __init__(self, density: TimeDensity, *, share: float = 0.1) -> None:
        if not 0 <= share <= 1:
            raise UserError(f"share={share}: the fraction of uniform times lies between 0 and 1")
        self.prior, self.share = density, share
        grid = torch.linspace(density.low, density.high, 65, dtype=torch.float64)
        if share == 0 and not bool((density.density(grid) > 1e-6).all()):
            raise UserError(f"{density!r} vanishes somewhere, so that its weights have no bound: give share > 0")

    def __call__(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        return self.weighted(torch.rand(rows, device=like.device, dtype=like.dtype))

    def weighted(self, uniform: Tensor) -> tuple[Tensor, Tensor]:
        """Times and weights from uniforms (B,): the lowest `share` of them becomes the uniform times."""
        low, length, share = self.prior.low, self.prior.high - self.prior.low, self.share
        even = low + length * (uniform / max(share, 1e-12)).clamp(max=1)
        drawn = self.prior.from_uniform(((uniform - share) / max(1 - share, 1e-12)).clamp(0, 1))
        t = torch.where(uniform < share, even, drawn)
        return t, 1 / ((1 - share) * length * self.prior.density(t) + share)


class Stratified(TimePrior):
    """One time from each of B equally likely parts of a prior, in random order, all shifted by one uniform.

    Each time has the distribution of the prior; their mean over a batch varies far less.

    Source: Variational Diffusion Models, Kingma et al. 2021, arXiv 2107.00630.

    >>> from sciflow.transport.times import Uniform
    >>> t, _ = Stratified(Uniform())(4, torch.zeros(1))
    >>> (4 * t).floor().sort().values
    tensor([0., 1., 2., 3.])
    """

    def __init__(self, prior: TimeDensity | Importance) -> None:
        if not isinstance(prior, (TimeDensity, Importance)):
            raise UserError(f"{prior!r} has no inverse cumulative distribution: strata need a TimeDensity or an Importance")
        self.prior = prior

    def __call__(self, rows: int, like: Tensor) -> tuple[Tensor, Tensor | None]:
        place = torch.randperm(rows, device=like.device).to(like.dtype)
        uniform = (place + torch.rand((), device=like.device, dtype=like.dtype)) / rows
        if isinstance(self.prior, Importance):
            return self.prior.weighted(uniform)
        return self.prior.from_uniform(uniform), None
