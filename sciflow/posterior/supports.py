"""Where densities of torch's distributions are positive, and integrate to 1."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.distributions import constraints

from sciflow.errors import UserError

__all__ = ["support_of"]


def support_of(distribution: Any) -> constraints.Constraint:
    """The support without batch dimensions of mixtures; of von Mises distributions one turn, [-pi, pi].

    Raises `UserError` for transformed von Mises distributions.

    >>> angle = torch.distributions.VonMises(torch.tensor(0.0), torch.tensor(1.0))
    >>> support_of(angle).check(torch.tensor([3.0, 4.0])).tolist()
    [True, False]
    """
    support, kind = distribution.support, torch.distributions
    if isinstance(distribution, kind.VonMises):
        return constraints.interval(-math.pi, math.pi)
    if isinstance(distribution, kind.Independent) and _angular(distribution):
        return constraints.independent(support_of(distribution.base_dist), distribution.reinterpreted_batch_ndims)
    if isinstance(distribution, kind.MixtureSameFamily):
        inner = support_of(distribution.component_distribution)
        return inner if _angular(distribution) else getattr(support, "base_constraint", support)
    if isinstance(distribution, kind.TransformedDistribution) and _angular(distribution.base_dist):
        raise UserError(
            f"the prior {distribution!r} transforms a von Mises distribution, whose density holds for one turn: give the prior "
            "of the angle itself, and transform in the likelihood"
        )
    return support


def _angular(distribution: Any) -> bool:
    """Whether it is made of von Mises distributions."""
    if isinstance(distribution, torch.distributions.Independent):
        return _angular(distribution.base_dist)
    if isinstance(distribution, torch.distributions.MixtureSameFamily):
        return _angular(distribution.component_distribution)
    return isinstance(distribution, torch.distributions.VonMises)
