"""Data as the base of a transport to other data."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.distributions import Base
from sciflow.errors import UserError
from sciflow.shapes import shape_of

__all__ = ["Empirical"]


class Empirical(Base):
    r"""sum_i w_i delta(z - z_i): rows of a data set, drawn with replacement by one uniform each, for data-to-data transports.

    Where source and target come in pairs, give the sources to the training too (`Batch.source`, or "source" of the data): they
    take the place of the base's draws, and `flow(c).data(source)` transports given points. With sources and no chosen base the
    flow refuses to draw, until `flow.sampling(base=Empirical.from_data(sources))` or another base says what from.

    A set of points has no density: `log_prob` raises `UserError`, so that the flow has none.

    Arguments: number of rows and their shape; the values lie in buffers, see `from_data`.

    >>> base = Empirical.from_data(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
    >>> base.from_uniform(torch.tensor([[0.1], [0.9]], dtype=torch.float64))
    tensor([[0., 1.],
            [2., 3.]], dtype=torch.float64)
    """

    no_density = "its base is a set of rows, which has no density: use a base with one, or fit a flow to the source (FlowBase)"
    rows: Tensor
    cumulative: Tensor

    def __init__(self, count: int, event_shape: int | tuple[int, ...]) -> None:
        super().__init__()
        if count < 1:
            raise UserError("an empirical base needs at least one row")
        self.event_shape = shape_of(event_shape)
        self.register_buffer("rows", torch.zeros(count, *self.event_shape))
        self.register_buffer("cumulative", torch.arange(1, count + 1, dtype=torch.float64) / count)

    @classmethod
    def from_data(cls, x: Tensor, weight: Tensor | None = None) -> Empirical:
        """From rows (N, *event) and non-negative relative weights (N,).

        Raises `UserError` for values that are not finite, and for weights of another number, negative ones, or a sum of 0.
        """
        base = cls(len(x), tuple(x.shape[1:]))
        if not bool(x.isfinite().all()):
            raise UserError("the source has values that are not finite: remove those rows")
        base.rows.data = x.detach().clone()
        if weight is not None:
            if weight.shape != x.shape[:1] or not bool((weight >= 0).all()) or not bool(weight.sum() > 0):
                raise UserError(f"{len(x)} rows need as many non-negative weights of positive sum, got {tuple(weight.shape)}")
            cumulative = weight.detach().double().cumsum(0)
            base.cumulative.copy_(cumulative / cumulative[-1])
        return base

    @property
    def uniforms(self) -> int:
        return 1

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        # the first row whose cumulative weight exceeds the uniform: rows of weight 0 are never drawn
        index = torch.searchsorted(self.cumulative, uniform[:, 0].contiguous(), right=True).clamp(max=len(self.rows) - 1)
        z = self.rows[index].double()
        return z if mask is None else z * mask

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        raise UserError(f"no density: {self.no_density}")

    def extra_repr(self) -> str:
        return f"{len(self.rows)} rows of shape {tuple(self.event_shape)}"
