"""Flows made of layers, computed features-first."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from sciflow.distributions import Base
from sciflow.flows.base import Flow
from sciflow.flows.condition import ConditionSpec, Encoder

__all__ = ["Layer", "LayeredFlow"]


class Layer(nn.Module, ABC):
    """One invertible layer on features-first columns: x (D, B), context (C, B) or None, mask (D, B) or None.

    Both directions return the mapped columns (D, B) and the log-determinant of that direction (B,). Features-first
    keeps the rows of a spline's parameters contiguous; the transpose happens once per call of the flow.
    """

    @abstractmethod
    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Towards the latent."""

    @abstractmethod
    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Towards the data."""

    def carried(self, x: Tensor, score: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        r"""The mapped columns with graph, ladj and the score there without: with s = \nabla log p(x) and y = f(x),

            \nabla log f#p(y) = (df^-1/dy)^T s + \nabla log |det df^-1/dy|,

        one vector-Jacobian product with the map in the other direction.

        Arguments:
            score: s (D, B).
            inverse: towards the data instead of towards the latent.
        """
        ahead, back = (self.inverse, self.forward) if inverse else (self.forward, self.inverse)
        y, ladj = ahead(x, context, None)
        with torch.enable_grad():
            point = y.detach().requires_grad_()
            found, inverse_ladj = back(point, context, None)
            outputs = [(found, score), (inverse_ladj, torch.ones_like(inverse_ladj))]
            used = [pair for pair in outputs if pair[0].requires_grad]  # the log-determinant of a linear map is constant
            (score,) = torch.autograd.grad([output for output, _ in used], point, [slope for _, slope in used])
        return y, ladj.detach(), score


class LayeredFlow(Flow):
    """A flow whose map towards the latent is layers[0], layers[1], ... in that order."""

    def __init__(
        self,
        features: int,
        condition: ConditionSpec = 0,
        *,
        base: Base | None = None,
        encoder: Encoder | None = None,
        maskable: bool = False,
    ) -> None:
        super().__init__(features, condition, base=base, encoder=encoder, maskable=maskable)
        self.layers = nn.ModuleList()

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(x, context, mask, [layer.forward for layer in self.layers])  # type: ignore[misc]

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._run(z, context, mask, [layer.inverse for layer in reversed(self.layers)])  # type: ignore[misc]

    def carried(
        self, x: Tensor, score: Tensor, context: Tensor | None = None, *, inverse: bool = True
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Rows x (B, D) and the score of their density there, through all layers, see `Layer.carried`."""
        columns, score = x.T.contiguous(), score.T.contiguous()
        context = None if context is None else context.T.contiguous()
        total = columns.new_zeros(columns.shape[1])
        for layer in reversed(self.layers) if inverse else self.layers:
            columns, ladj, score = layer.carried(columns, score, context, inverse=inverse)  # type: ignore[operator]
            total = total + ladj
        return columns.T, total, score.T

    def _run(self, x: Tensor, context: Tensor | None, mask: Tensor | None, maps: Iterable) -> tuple[Tensor, Tensor]:
        columns = x.T.contiguous()
        context = None if context is None else context.T.contiguous()
        mask = None if mask is None else mask.T
        if mask is not None:
            columns = torch.where(mask, columns, 0)
        total = columns.new_zeros(columns.shape[1])
        for step in maps:
            columns, ladj = step(columns, context, mask)
            total = total + ladj
        return columns.T, total
