"""Independent pairs, the close ones weighted up."""

from __future__ import annotations

import math

import torch

from sciflow.errors import UserError
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["WeightedCoupling"]


class WeightedCoupling(Coupling):
    r"""W-CFM: weights exp(-|x0 - x1|^2 / epsilon), divided by their mean over the batch; x0 and x1 stay where they are.

    A coupling without a solver: the weighted pairs follow exp(-C / epsilon) p(x0) p(x1), which is an entropic plan whose
    marginals are tilted: targets that many x0 are close to count more, and x0 is not quite the base (`keeps_target` and
    `keeps_base` are False). The tilt depends on the condition: train without
    one.

    Arguments:
        epsilon: in units of the mean cost of the batch; large values give equal weights and no tilt.
        space: see `ExactOT`.

    Source: Weighted Conditional Flow Matching, Calvo-Ordonez et al. 2025, arXiv 2507.22270 (here the squared distance, and
    its mean as the unit of epsilon).

    >>> WeightedCoupling()(Pair(torch.zeros(2, 1), torch.tensor([[0.0], [1.0]]))).weight
    tensor([1.7616, 0.2384])
    """

    keeps_condition = False
    keeps_base = False
    keeps_target = False

    def __init__(self, epsilon: float = 1.0, *, space: Space | None = None) -> None:
        if not 0 < epsilon < math.inf:
            raise UserError(f"epsilon={epsilon}: a positive number is needed, in units of the mean cost")
        self.epsilon, self.space = epsilon, space

    def __call__(self, pair: Pair) -> Pair:
        if pair.x0.shape != pair.x1.shape:
            raise ValueError(f"x0 has shape {tuple(pair.x0.shape)} but x1 {tuple(pair.x1.shape)}: they must agree")
        with torch.no_grad():
            if self.space is None or self.space.euclidean:
                cost = (pair.x1 - pair.x0).flatten(1).square().sum(1)
            else:
                cost = self.space.distance(pair.x0, pair.x1).square()
            unit = (self.epsilon * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)
            weight = torch.softmax(-cost / unit, 0) * len(cost)
        return pair._replace(weight=weight if pair.weight is None else weight * pair.weight)
