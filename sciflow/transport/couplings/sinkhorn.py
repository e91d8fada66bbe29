"""Entropic optimal transport within the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.transport.couplings.plan import Plan, block_of, squared_distances
from sciflow.transport.pair import Pair
from sciflow.transport.spaces.base import Space

__all__ = ["Sinkhorn", "draw_columns", "potentials"]


class Sinkhorn(Plan):
    r"""Draws each target's x0 from the plan P that minimises <P, C> + reg KL(P | uniform), C = |x0 - x1|^2.

    Arguments:
        regularisation: in units of the mean cost of the batch: towards 0 exact transport, large values no coupling.
        iterations: at most so many at the final regularisation.
        tolerance: mean relative error of the columns' sums at which the iteration ends.
        space, block: see `ExactOT`.

    Targets are all kept; an x0 may meet several targets or none. The iteration is in the log domain with a regularisation
    that falls by factors of 4 from the largest cost, so that it does not under- or overflow.

    Source: Sinkhorn Distances: Lightspeed Computation of Optimal Transport, Cuturi 2013, arXiv 1306.0895; Stabilized Sparse
    Scaling Algorithms for Entropy Regularized Transport Problems, Schmitzer 2016, arXiv 1610.06519.

    >>> x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0))
    >>> torch.equal(Sinkhorn(1e-4)(Pair(x.flip(0), x)).x0, x)
    True
    """

    keeps_condition = False
    random = True

    def __init__(
        self,
        regularisation: float = 0.05,
        *,
        iterations: int = 200,
        tolerance: float = 0.01,
        space: Space | None = None,
        block: int | None = None,
    ) -> None:
        if not 0 < regularisation < math.inf:
            raise UserError(f"regularisation={regularisation}: a positive number is needed (ExactOT is the limit 0)")
        self.regularisation, self.tolerance = regularisation, tolerance
        self.iterations = integer("iterations", iterations, 1, 2**31)
        self.space, self.block = space, block_of(block)

    def choose(self, pair: Pair, uniform: Tensor | None) -> tuple[Tensor, Tensor | None]:
        assert uniform is not None
        cost = squared_distances(pair, self.space)
        epsilon = self.epsilon(cost)
        _, g = potentials(cost, epsilon, iterations=self.iterations, tolerance=self.tolerance)
        return draw_columns((g - cost) / epsilon, uniform), None

    def epsilon(self, cost: Tensor) -> Tensor:
        """The regularisation in units of the cost, ()."""
        return (self.regularisation * cost.mean()).clamp_min(torch.finfo(cost.dtype).tiny)


def potentials(
    cost: Tensor,
    epsilon: Tensor,
    *,
    rows: Tensor | float = 1.0,
    columns: Tensor | float = 1.0,
    iterations: int = 200,
    tolerance: float = 0.01,
) -> tuple[Tensor, Tensor]:
    r"""f (n,), g (m,) of the plan P_ij = exp((f_i + g_j - C_ij) / epsilon) / (n m) with uniform marginals.

    A relaxation `rows` or `columns`, tau / (tau + epsilon), is 1 for a given marginal and smaller where it may be left at the
    price tau KL. Columns are updated last: with relaxation 1 their sums are exact. Looks at the error at every tenth
    iteration only, where a device has to be waited for.
    """
    f, g = cost.new_zeros(len(cost)), cost.new_zeros(cost.shape[1])
    n, m = math.log(len(cost)), math.log(cost.shape[1])

    def sweep(e: Tensor) -> Tensor:
        nonlocal f, g
        before = g
        f = -rows * e * (torch.logsumexp((g - cost) / e, 1) - m)
        g = -columns * e * (torch.logsumexp((f[:, None] - cost) / e, 0) - n)
        return torch.expm1((before - g) / e).abs().mean()

    def settle(e: Tensor, most: int, enough: float) -> None:
        for count in range(1, most + 1):
            error = sweep(e)
            if count % 10 == 0 and bool(error < enough):
                return

    stages = math.log(max(float(cost.max() / epsilon), 1.0), 4) if bool(torch.isfinite(cost).all()) else 0.0
    for stage in range(math.ceil(stages) - 1, 0, -1):
        settle(epsilon * 4.0**stage, iterations // 4, max(tolerance, 0.1))
    settle(epsilon, iterations, tolerance)
    return f, g


def draw_columns(logits: Tensor, uniform: Tensor) -> Tensor:
    """One column number per row with probability softmax(logits), by inverse CDF from one uniform per row."""
    cdf = torch.softmax(logits.double(), 1).cumsum(1)
    # a row of NaN draws column 0: whoever looks at the loss finds the row
    index = torch.searchsorted(cdf, (uniform.to(cdf.dtype) * cdf[:, -1])[:, None], right=True)[:, 0]
    return torch.where(torch.isnan(cdf[:, -1]), 0, index.clamp_max(logits.shape[1] - 1))
