"""Exact optimal transport within the batch."""

from __future__ import annotations

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from sciflow.transport.couplings.plan import Plan, block_of, squared_distances
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["ExactOT", "assign", "nearest"]


class ExactOT(Plan):
    r"""The permutation that minimises \sum_i |x0_{\pi(i)} - x1_i|^2: an assignment, so every x0 and every x1 is kept.

    Arguments:
        block: couple the batch in pieces of so many rows; the time grows with the third power of their number.
        space: measures geodesic distances where it is not flat; None for R^n.

    In R^n the cost is -x0 . x1, which has the same minimum, its rows' and then columns' minima subtracted; features of
    one number are sorted. The assignment runs on the host, whatever the device. A row with a NaN meets any x0.

    It makes x0 depend on x1 and so on a condition: train without one, or use `ConditionalOT`.

    Source: Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport, Tong et al. 2023,
    arXiv 2302.00482; Multisample Flow Matching, Pooladian et al. 2023, arXiv 2304.14772.

    >>> x1 = torch.tensor([[0.0], [1.0], [2.0]])
    >>> ExactOT()(Pair(torch.tensor([[5.0], [-5.0], [0.5]]), x1)).x0.flatten()
    tensor([-5.0000,  0.5000,  5.0000])
    """

    keeps_condition = False

    def __init__(self, *, block: int | None = None, space: Space | None = None) -> None:
        self.block, self.space = block_of(block), space

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return nearest(pair, self.space), None


def nearest(pair: Pair, space: Space | None) -> Tensor:
    """For each x1 the row number of its x0, (n,), of the least total squared distance."""
    if space is not None and not space.euclidean:
        return assign(squared_distances(pair, space))
    x0, x1 = pair.x0.detach().flatten(1), pair.x1.detach().flatten(1)
    if x0.shape[1] == 1:
        index = torch.empty(len(x1), dtype=torch.int64, device=x1.device)
        index[torch.argsort(x1[:, 0], stable=True)] = torch.argsort(x0[:, 0], stable=True)
        return index
    # a shift of all x1 or x0 changes whole rows or columns of the cost, hence not the assignment: less cancellation
    return assign((x1.mean(0) - x1).double() @ (x0 - x0.mean(0)).double().T)


def assign(cost: Tensor) -> Tensor:
    """For each row of a square cost the column of the cheapest one-to-one assignment, (n,), on the cost's device."""
    c = cost.detach().to("cpu", torch.float64).numpy(force=True).copy()
    if not np.isfinite(c.sum()):
        c = np.nan_to_num(c, nan=0.0, posinf=np.finfo(np.float64).max ** 0.5, neginf=0.0)
    c -= c.min(1, keepdims=True)
    c -= c.min(0)
    return torch.as_tensor(linear_sum_assignment(c)[1], device=cost.device)
