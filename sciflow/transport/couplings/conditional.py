"""Optimal transport that leaves the noise independent of the condition."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.exact import assign
from sciflow.transport.couplings.plan import Plan, condition_leaves, squared_distances
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
        discrete: whether the entries of the condition are labels; None: those of integers and booleans are, floating ones are
            continuous (standardised by their spread in the batch).
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
        self.ratio, self.discrete, self.space, self.block = ratio, discrete, space, block

    def labels(self, pair: Pair) -> list[Tensor]:
        return super().labels(pair) + class_labels(pair, self.discrete, self)

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        cost = squared_distances(pair, self.space)
        leaves = [] if self.discrete else condition_leaves(pair.condition, len(cost))
        columns = [leaf.detach().to(cost.dtype) for leaf in leaves if not _is_label(leaf, self.discrete)]
        if not columns:
            return assign(cost), None
        c = torch.cat(columns, 1)
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
    rows = len(pair.x1)
    leaves = [leaf.detach() for leaf in condition_leaves(pair.condition, rows) if _is_label(leaf, discrete)]
    # numbers of floating labels, since their values may differ by less than one
    return [torch.unique(leaf, dim=0, return_inverse=True)[1][:, None] if leaf.is_floating_point() else leaf for leaf in leaves]


def _is_label(leaf: Tensor, discrete: bool | None) -> bool:
    return not leaf.is_floating_point() if discrete is None else discrete
