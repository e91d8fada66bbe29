"""Optimal transport that leaves the noise independent of the condition."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.exact import assign, nearest
from sciflow.transport.couplings.plan import Plan, block_of, condition_leaves, squared_distances
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["ConditionalOT", "WithinClasses"]


class ConditionalOT(Plan):
    r"""C2OT: the permutation that minimises \sum_i |x0_{\pi(i)} - x1_i|^2 + w |c_{\pi(i)} - c_i|^2.

    Exact for discrete conditions only: there w is infinite, x0 is exchanged between rows of the same condition, and stays
    independent of it. For continuous conditions w is finite and the dependence small, not zero: x0 still knows a little of
    where c lies among its neighbours in the batch. Choose a smaller `ratio` or a larger batch for less of it.

    Arguments:
        ratio: w is the smallest weight at which a share of at most `ratio` of the pairs (i, j) would lower the cost by giving
            x0_j to target i instead of its own. It needs no search: the share falls past each pair's critical weight
            (|x0_i - x1_i|^2 - |x0_j - x1_i|^2) / |c_i - c_j|^2, so w is a quantile of these, and infinite where equal
            conditions alone make up the share.
        discrete: whether the entries of the condition are labels; None: those of integers and booleans are, and floating
            columns whose values repeat (together they divide the batch into groups of four rows or more on average: classes as
            0.0 and 1.0, one-hot rows). Other columns are continuous, standardised by their spread in the batch.
        space, block: see `ExactOT`.

    Raises `UserError` without a condition.

    Source: The Curse of Conditions: Analyzing and Improving Optimal Transport for Conditional Flow-Based Generation, Cheng and
    Schwing 2025, arXiv 2503.10636; there with the cosine distance of the conditions.

    >>> pair = Pair(torch.tensor([[2.0], [-2.0], [1.0]]), torch.tensor([[-1.0], [1.0], [0.0]]), torch.tensor([0, 1, 0]))
    >>> ConditionalOT()(pair).x0.flatten()
    tensor([ 1., -2.,  2.])
    """

    needs_condition = True

    def __init__(
        self,
        ratio: float = 0.01,
        *,
        discrete: bool | None = None,
        space: Space | None = None,
        block: int | None = None,
    ) -> None:
        if not 0 < ratio < 1:
            raise UserError(f"ratio={ratio}: a share in (0, 1) of the pairs is needed")
        self.ratio, self.discrete, self.space, self.block = ratio, discrete, space, block_of(block)

    def labels(self, pair: Pair) -> list[Tensor]:
        return super().labels(pair) + class_labels(pair, self.discrete, self)

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        leaves = condition_leaves(pair.condition, len(pair.x1))
        # labels do not vary here: all rows have the same
        columns = [leaf.detach()[:, (leaf != leaf[:1]).any(0)] for leaf in leaves]
        if not any(column.shape[1] for column in columns):
            return nearest(pair, self.space), None
        cost = squared_distances(pair, self.space)
        c = torch.cat([column.to(cost.dtype) for column in columns], 1)
        c = (c - c.mean(0)) / c.std(0).clamp_min(torch.finfo(c.dtype).tiny)
        apart = torch.cdist(c, c, compute_mode="donot_use_mm_for_euclid_dist").square()
        gain = cost.diagonal()[:, None] - cost
        critical = torch.where(apart > 0, gain / apart, torch.where(gain > 0, torch.inf, -torch.inf))
        critical = critical.masked_fill(torch.eye(len(cost), dtype=torch.bool, device=cost.device), -torch.inf)
        weight = critical.flatten().kthvalue(max(1, round((1 - self.ratio) * critical.numel()))).values.clamp_min(0)
        penalty = torch.where(torch.isinf(weight), 1e6 * (1 + cost.max()), weight * apart)
        return assign(cost + torch.where(apart > 0, penalty, 0.0)), None


class WithinClasses(Plan):
    """Any coupling of this kind, applied to rows of the same discrete condition: x0 stays independent of it, exactly.

    With `ExactOT` it is C2OT for discrete conditions. All entries of the condition count as labels; a weight has mean one in
    each class.

    >>> pair = Pair(torch.tensor([[2.0], [-2.0], [1.0]]), torch.tensor([[-1.0], [1.0], [0.0]]), torch.tensor([0, 1, 0]))
    >>> from sciflow.transport.couplings.exact import ExactOT
    >>> WithinClasses(ExactOT())(pair).x0.flatten()
    tensor([ 1., -2.,  2.])
    """

    needs_condition = True

    def __init__(self, coupling: Plan) -> None:
        if not isinstance(coupling, Plan):
            raise UserError(f"{coupling!r} does not choose among the batch's noise: it cannot be confined to classes")
        self.coupling = coupling
        self.random, self.block, self.space, self.sigma = coupling.random, coupling.block, coupling.space, coupling.sigma
        self.keeps_base, self.keeps_target = coupling.keeps_base, coupling.keeps_target

    def labels(self, pair: Pair) -> list[Tensor]:
        return self.coupling.labels(pair) + class_labels(pair, True, self)

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return self.coupling.choose(pair, uniform)


def class_labels(pair: Pair, discrete: bool | None, coupling: Plan) -> list[Tensor]:
    """The entries of the condition that are labels, as integer columns."""
    if pair.condition is None:
        raise UserError(f"{coupling!r} couples per condition, but the data have none: use ExactOT")
    found = []
    for leaf in condition_leaves(pair.condition, len(pair.x1)):
        leaf = leaf.detach()
        if not leaf.is_floating_point():
            found += [] if discrete is False else [leaf]
            continue
        columns = leaf if discrete else leaf[:, :0] if discrete is False else _repeating(leaf)
        if columns.shape[1]:  # their numbers, since floating values may differ by less than one
            found.append(torch.unique(columns, dim=0, return_inverse=True)[1][:, None])
    return found


def _repeating(leaf: Tensor) -> Tensor:
    """The columns (rows, k) of a floating leaf that look like labels."""
    most = len(leaf) // 4
    chosen = [column for column in leaf.unbind(1) if len(torch.unique(column)) <= most]
    columns = torch.stack(chosen, 1) if chosen else leaf[:, :0]
    return columns if chosen and len(torch.unique(columns, dim=0)) <= most else leaf[:, :0]
