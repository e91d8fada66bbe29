"""Optimal transport that may leave targets aside: outliers, and minibatches that are not quite the distribution."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.transport.couplings.exact import assign
from sciflow.transport.couplings.plan import Plan, block_of, squared_distances
from sciflow.transport.couplings.sinkhorn import draw_columns, potentials
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["PartialOT", "UnbalancedOT"]


class UnbalancedOT(Plan):
    r"""Minimises <P, C> + reg KL(P | uniform) + target KL(P 1 | uniform) [+ base KL(P^T 1 | uniform)], C = |x0 - x1|^2.

    Targets far from all noise get less weight; each one's x0 is drawn from its row of P, its weight is the row's mass (mean
    one over the batch). All three numbers are in units of the mean cost.

    Arguments:
        regularisation: entropy, see `Sinkhorn`.
        target: the price of leaving the data's marginal; large values give `Sinkhorn`.
        base: the same for that of the noise; None keeps it. A number lets far noise fall away as well, in training: the base
            that is sampled still has it (`keeps_base` is False then).

    Source: Scaling Algorithms for Unbalanced Transport Problems, Chizat et al. 2016, arXiv 1607.05816.

    >>> x = torch.tensor([[0.0], [0.1], [100.0]])
    >>> UnbalancedOT(0.05, target=0.1)(Pair(torch.tensor([[0.0], [0.1], [0.2]]), x)).weight[2] < 1e-3
    tensor(True)
    """

    keeps_condition = False
    keeps_target = False
    random = True

    def __init__(
        self,
        regularisation: float = 0.05,
        *,
        target: float = 1.0,
        base: float | None = None,
        iterations: int = 200,
        tolerance: float = 0.01,
        space: Space | None = None,
        block: int | None = None,
    ) -> None:
        for name, value in (("regularisation", regularisation), ("target", target), ("base", 1.0 if base is None else base)):
            if not 0 < value < math.inf:
                raise UserError(f"{name}={value}: a positive number is needed, in units of the mean cost")
        self.regularisation, self.target, self.base = regularisation, target, base
        self.iterations, self.tolerance = integer("iterations", iterations, 1, 2**31), tolerance
        self.space, self.block = space, block_of(block)
        self.keeps_base = base is None

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert uniform is not None
        cost = squared_distances(pair, self.space)
        epsilon = (self.regularisation * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)
        rows = self.target / (self.target + self.regularisation)
        columns = 1.0 if self.base is None else self.base / (self.base + self.regularisation)
        f, g = potentials(
            cost, epsilon, rows=rows, columns=columns, iterations=self.iterations, tolerance=self.tolerance
        )  # fmt: skip
        logits = (g - cost) / epsilon
        mass = f / epsilon + torch.logsumexp(logits, 1)
        return draw_columns(logits, uniform), torch.softmax(mass, 0)


class PartialOT(Plan):
    r"""The cheapest assignment of a share of the pairs: min <P, C> with P 1 <= 1/n, P^T 1 <= 1/n and total mass `mass`.

    Exactly round(mass n) targets are matched one to one and share the weight; the others have weight 0. The noise that is
    not matched is missing in training while the base still draws it (`keeps_base` is False): keep `mass` near 1.

    Source: Partial Optimal Transport with Applications on Positive-Unlabeled Learning, Chapel et al. 2020, arXiv 2002.08276;
    Improving Mini-batch Optimal Transport via Partial Transportation, Nguyen et al. 2021, arXiv 2108.09645.

    >>> x = torch.tensor([[0.0], [0.1], [100.0], [0.2]])
    >>> PartialOT(0.75)(Pair(torch.tensor([[0.0], [0.1], [0.2], [-90.0]]), x)).weight
    tensor([1.3333, 1.3333, 0.0000, 1.3333])
    """

    keeps_condition = False
    keeps_base = False
    keeps_target = False

    def __init__(self, mass: float = 0.9, *, space: Space | None = None, block: int | None = None) -> None:
        if not 0 < mass <= 1:
            raise UserError(f"mass={mass}: a share in (0, 1] of the pairs is needed")
        self.mass, self.space, self.block = mass, space, block_of(block)

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        cost = squared_distances(pair, self.space)
        n = len(cost)
        spare = n - max(1, round(self.mass * n))
        # so many dummies on either side take what is not transported, for nothing; dummies do not meet each other
        padded = cost.new_zeros(n + spare, n + spare)
        padded[:n, :n] = cost
        padded[n:, n:] = 4 * n * (1 + torch.nan_to_num(cost).max())
        index = assign(padded)[:n]
        matched = index < n
        free = torch.ones(n, dtype=torch.bool, device=cost.device).index_fill(0, index[matched], False)
        return index.masked_scatter(~matched, free.nonzero()[:, 0]), matched.to(cost.dtype)
