"""Elementwise curves u(y) with straight ends: what makes a column roughly normal."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["Curves"]

_NONE, _LOG, _LOGIT = 0, 1, 2
_KINDS = {"none": _NONE, "log": _LOG, "logit": _LOGIT, "bounded": _LOGIT}


class Curves(nn.Module):
    r"""u_j(y_j) for columns y (N, D), each strictly increasing and once continuously differentiable on the whole line.

    Between `floor` and `ceiling` a column is y, log(y - origin) or log(r / (1 - r)) with r = (y - origin) / span; beyond,
    the tangent continues it, so that no value, however far out, becomes infinite or undefined, and so that a band of
    dequantised values has room below the floor.
    """

    kind: Tensor
    origin: Tensor
    span: Tensor
    floor: Tensor
    ceiling: Tensor

    def __init__(self, transforms: list[str]) -> None:
        super().__init__()
        self.register_buffer("kind", torch.tensor([_KINDS[name] for name in transforms], dtype=torch.int64), persistent=False)
        size = len(transforms)
        self.register_buffer("origin", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("span", torch.ones(size, dtype=torch.float64))
        # the straight parts; columns without a curve have none, because their curve is straight itself
        self.register_buffer("floor", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("ceiling", torch.ones(size, dtype=torch.float64))

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """u (N, D) and log du/dy (N, D)."""
        inside = torch.minimum(torch.maximum(y, self.floor), self.ceiling)
        value, slope = self._curve(inside)
        straight = self.kind == _NONE
        u = torch.where(straight, y, value + (y - inside) * slope)
        return u, torch.log(slope)

    def inverse(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """y (N, D) and log dy/du (N, D)."""
        low, _ = self._curve(self.floor)
        high, _ = self._curve(self.ceiling)
        inside = torch.minimum(torch.maximum(u, low), high)
        point = torch.where(
            self.kind == _LOGIT,
            self.origin + self.span * torch.sigmoid(inside),
            # the exponent of a column that is no logarithm may overflow: keep it out of the branch that is not taken
            self.origin + torch.exp(torch.where(self.kind == _LOG, inside, 0.0)),
        )
        _, slope = self._curve(point)
        y = torch.where(self.kind == _NONE, u, point + (u - inside) / slope)
        return y, -torch.log(slope)

    def _curve(self, t: Tensor) -> tuple[Tensor, Tensor]:
        distance = t - self.origin
        distance = torch.where(self.kind == _LOG, distance, 1.0)
        ratio = torch.where(self.kind == _LOGIT, (t - self.origin) / self.span, 0.5)
        logit = torch.log(ratio) - torch.log1p(-ratio)
        value = torch.where(self.kind == _LOG, torch.log(distance), torch.where(self.kind == _LOGIT, logit, t))
        slope = torch.where(self.kind == _LOGIT, 1 / (self.span * ratio * (1 - ratio)), 1 / distance)
        return value, slope
