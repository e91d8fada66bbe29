"""Maximum likelihood of discrete values."""

from __future__ import annotations

from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.dequantised import Dequantised
from sciflow.training.objective import Batch, Objective

__all__ = ["DiscreteLikelihood"]


class DiscreteLikelihood(Objective):
    """-E_q[log p(x + step u) + features log step - log q(u | x)], noise drawn anew: an upper bound of -log P(x | condition).

    Trains the flow and, if it is `Variational`, its noise.

    Source: Flow++, Ho et al. 2019, arXiv 1902.00275.
    """

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not isinstance(flow, Dequantised):
            raise UserError(f"DiscreteLikelihood trains a Dequantised flow, not a {type(flow).__name__}")
        context = flow.encoder(batch.condition)
        if context is not None:
            context = context.to(flow.inner_dtype(batch.x)).expand(len(batch.x), -1)
        return -flow.bound(flow.quantise(batch.x, batch.mask), context, batch.mask)
