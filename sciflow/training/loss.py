"""One module whose forward is the loss, so that data-parallel wrappers work."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.training.objective import Batch, Objective

__all__ = ["LossModule"]


class LossModule(nn.Module):
    """batch -> (sum_i w_i loss_i, sum_i w_i, penalty), each of shape (); the penalty may be None.

    Sums instead of means: over processes, numerators and denominators are added separately.
    Raises `ValueError`, naming both shapes, if the objective does not return one loss per example.
    """

    def __init__(self, flow: nn.Module, objective: Objective, *, autocast: torch.dtype | None = None) -> None:
        super().__init__()
        self.flow, self.objective, self.autocast = flow, objective, autocast
        self.losses = torch.empty(0)  # of the last batch: it tells the rows if a loss is not finite

    def forward(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor | None]:
        with torch.autocast(batch.x.device.type, dtype=self.autocast or torch.bfloat16, enabled=self.autocast is not None):
            losses = self.objective(self.flow, batch)
            penalty = self.objective.penalty(self.flow, batch)
        if losses.shape != batch.x.shape[:1]:
            raise ValueError(
                f"{type(self.objective).__name__} returned losses of shape {tuple(losses.shape)}, "
                f"expected one per example, {tuple(batch.x.shape[:1])}"
            )
        if batch.weight is not None:
            # a row of weight 0 has no say, not even by an infinite loss
            losses = torch.where(batch.weight == 0, torch.zeros_like(losses), losses)
        self.losses = losses.detach()
        if batch.weight is None:
            return losses.sum(), losses.new_tensor(float(len(losses))), penalty
        weight = batch.weight.to(losses.dtype)
        return torch.dot(weight, losses), weight.sum(), penalty
