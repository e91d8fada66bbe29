"""How uniforms become draws of those torch distributions that have no `icdf`: gamma, beta, Student, Dirichlet and their kin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import special
from torch import Tensor
from torch.distributions import (
    Beta,
    Dirichlet,
    Gamma,
    Independent,
    StudentT,
    TransformedDistribution,
)

from sciflow.errors import UserError
from sciflow.store.source import source

__all__ = ["inverse_of", "unresolved"]

Inverse = Callable[[Tensor], Tensor]  # float64 uniforms (n, *batch, count) -> draws (n, *batch, *event)


def inverse_of(distribution: Any) -> tuple[int, Inverse] | None:
    """The number of uniforms per draw and the map from uniforms to draws; None if there is none.

    Inverse distribution functions come from `scipy.special`, on the CPU; the rest from `sciflow.store.source`. Draws of gamma,
    beta and Dirichlet distributions stay where their density is finite: 0 becomes the smallest normal number, 1 is 1 - eps.

    >>> count, inverse = inverse_of(Gamma(torch.tensor(1.0), torch.tensor(2.0)))
    >>> inverse(torch.full((1, count), 0.5, dtype=torch.float64))
    tensor([0.3466])
    """
    if isinstance(distribution, Independent):
        inner = inverse_of(distribution.base_dist)
        if inner is None:
            return None
        shape = distribution.event_shape[: distribution.reinterpreted_batch_ndims]
        count, inverse = inner
        return shape.numel() * count, lambda u: inverse(u.reshape(*u.shape[:-1], *shape, count))
    if isinstance(distribution, Gamma):
        return 1, _of(special.gammaincinv, lambda x: _above_zero(x / distribution.rate), distribution.concentration)
    if isinstance(distribution, Beta):
        return 1, _of(special.betaincinv, _within_unit, distribution.concentration1, distribution.concentration0)
    if isinstance(distribution, StudentT):
        return 1, _of(special.stdtrit, lambda x: distribution.loc + distribution.scale * x, distribution.df)
    if isinstance(distribution, Dirichlet):
        return distribution.event_shape[0], _dirichlet(distribution)
    if isinstance(distribution, TransformedDistribution) and not _has_source(distribution):
        inner = inverse_of(distribution.base_dist)
        if inner is None or distribution.event_shape.numel() != distribution.base_dist.event_shape.numel():
            return None
        return inner[0], lambda u: _transformed(distribution, inner[1](u))
    if not _has_source(distribution):
        return None
    found = source(distribution)
    return found.uniforms, lambda u: found.draw(u, False).x


def unresolved(distribution: Any) -> float:
    """The share of a gamma, beta or Dirichlet distribution that its dtype has no numbers for: below the smallest normal number,
    or beyond 1 - eps. At most this much for several; 0 for other distributions.

    >>> [unresolved(Gamma(torch.tensor(shape), torch.tensor(1.0))) > 0.4 for shape in (1.0, 0.01)]
    [False, True]
    """
    if isinstance(distribution, (Independent, TransformedDistribution)):
        return unresolved(distribution.base_dist)
    if isinstance(distribution, Gamma):
        a, rate = _double(distribution.concentration, distribution.rate)
        lost = special.gammainc(a, rate * torch.finfo(distribution.rate.dtype).tiny)
    elif isinstance(distribution, Beta):
        a, b = _double(distribution.concentration1, distribution.concentration0)
        limits = torch.finfo(distribution.concentration1.dtype)
        lost = special.betainc(a, b, limits.tiny) + special.betainc(b, a, limits.eps)
    elif isinstance(distribution, Dirichlet):
        (a,) = _double(distribution.concentration)
        lost = special.betainc(a, a.sum(-1, keepdims=True) - a, torch.finfo(distribution.concentration.dtype).tiny)
    else:
        return 0.0
    return min(float(lost.sum()), 1.0)


def _double(*parameters: Tensor) -> list[Any]:
    return [p.detach().double().cpu().numpy() for p in parameters]


def _above_zero(x: Tensor) -> Tensor:
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def _within_unit(x: Tensor) -> Tensor:
    return _above_zero(x).clamp_max(1 - torch.finfo(x.dtype).eps)


def _of(function: Any, after: Inverse, *parameters: Tensor) -> Inverse:
    def inverse(u: Tensor) -> Tensor:
        like = parameters[0]
        values = function(*(p.detach().double().cpu().numpy() for p in parameters), u[..., 0].cpu().numpy())
        return after(torch.as_tensor(values).to(like.device, like.dtype))

    return inverse


def _dirichlet(distribution: Dirichlet) -> Inverse:
    def inverse(u: Tensor) -> Tensor:
        concentration = distribution.concentration.detach()
        gammas = special.gammaincinv(concentration.double().cpu().numpy(), u.cpu().numpy())
        shares = torch.as_tensor(gammas).clamp_min(1e-300)
        return _above_zero((shares / shares.sum(-1, keepdim=True)).to(concentration.device, concentration.dtype))

    return inverse


def _transformed(distribution: TransformedDistribution, x: Tensor) -> Tensor:
    for transform in distribution.transforms:
        x = transform(x)
    return x


def _has_source(distribution: Any) -> bool:
    try:
        source(distribution)
    except UserError:
        return False
    return True
