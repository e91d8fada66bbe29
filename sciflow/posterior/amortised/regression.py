"""Data less what a straight line says of them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.recorded import Recorded

__all__ = ["Regression"]


class Regression(nn.Module, Recorded):
    r"""r = (y - c B - b) / s, for data y (B, n) and a condition c (B, C): residuals of least squares, of unit variance.

    A location that is linear in c is taken out exactly, and a flow of r need not learn it. Columns of y that have the same
    values again and again (counts) are discrete: `spread` makes a density exist for them.

    Arguments:
        features: n.
        condition: C.
    """

    slope: Tensor
    offset: Tensor
    scale: Tensor
    gap: Tensor
    start: Tensor

    def __init__(self, features: int, condition: int) -> None:
        super().__init__()
        self.features, self.condition = features, condition
        self.register_buffer("slope", torch.zeros(condition, features, dtype=torch.float64))
        self.register_buffer("offset", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("scale", torch.ones(features, dtype=torch.float64))
        self.register_buffer("gap", torch.zeros(features, dtype=torch.float64))
        self.register_buffer("start", torch.zeros(features, dtype=torch.float64))

    def _apply(self, fn, recurse: bool = True) -> Regression:  # type: ignore[no-untyped-def]
        return super()._apply(lambda tensor: tensor.to(fn(tensor).device), recurse)  # type: ignore[return-value]

    @torch.no_grad()
    def fit(self, y: Tensor, condition: Tensor) -> Regression:
        """From rows. A column is discrete if each of its values occurs more than twice on average."""
        y, condition = y.double(), condition.double()
        design = torch.cat((condition, condition.new_ones(len(y), 1)), 1)
        found = torch.linalg.lstsq(design, y).solution
        self.slope.copy_(found[:-1])
        self.offset.copy_(found[-1])
        spread = (y - design @ found).std(0)
        self.scale.copy_(torch.where(spread > 1e-9 * y.abs().amax(0), spread, 1.0))
        for column, values in enumerate(y.T):
            different = values.unique()
            if 1 < len(different) < len(values) / 2:
                self.gap[column], self.start[column] = different.diff().min(), different[0]
        return self

    def spread(self, y: Tensor, uniform: Tensor) -> Tensor:
        """Data whose discrete columns lie anywhere within half a gap of their value, by uniforms (B, n)."""
        return y.double() + self.gap * (uniform - 0.5)

    def forward(self, y: Tensor, condition: Tensor) -> tuple[Tensor, Tensor]:
        """Residuals (B, n) and log |det dr/dy| ()."""
        return (y.double() - condition.double() @ self.slope - self.offset) / self.scale, -self.scale.log().sum()

    def inverse(self, residual: Tensor, condition: Tensor) -> Tensor:
        """Data (B, n) of residuals; discrete columns are multiples of their gap above their smallest value."""
        y = residual.double() * self.scale + condition.double() @ self.slope + self.offset
        steps = ((y - self.start) / torch.where(self.gap > 0, self.gap, 1.0)).round()
        return torch.where(self.gap > 0, self.start + self.gap * steps, y)
