"""What a flow learns: the Objective contract and maximum likelihood."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor, nn

__all__ = ["Batch", "MaximumLikelihood", "Objective"]


class Batch(NamedTuple):
    """Rows of a training set. All tensors share the first axis; the condition may be a nested dict of tensors."""

    x: Tensor
    condition: Any = None
    weight: Tensor | None = None
    mask: Tensor | None = None
    # number of each row in the data set (or of its event), for messages and event-seeded randomness
    index: Tensor | None = None  # type: ignore[assignment]
    # the point each row is to be joined to, in the place of noise: for data-to-data transports
    source: Tensor | None = None


class Objective(nn.Module, ABC):
    """(flow, batch) -> one loss per example (B,); the trainer weights, averages and differentiates it.

    An objective may own parameters (teachers) and sees the whole batch. What it has to remember over a resumed
    training lies in parameters and persistent buffers.
    """

    @abstractmethod
    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        """One loss per example, shape (B,)."""

    def penalty(self, flow: nn.Module, batch: Batch) -> Tensor | None:
        """A term of the whole batch, shape (), added to the weighted mean of the losses; None for none."""
        return None

    def after_step(self) -> None:
        """Called after each optimiser step, on every process: multipliers, teachers."""

    def measure(self, flow: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Scalars that the trainer averages over the validation set (by weight) and hands to `merit`."""
        return {}

    def merit(self, loss: float, measured: Mapping[str, float]) -> float:
        """What is to be minimised over the epochs, on the validation set: it chooses the best one and stops early."""
        return loss

    def report(self) -> dict[str, Any]:
        """Numbers that belong into the history of a training, as JSON."""
        return {}


class MaximumLikelihood(Objective):
    """-log p(x | condition): the forward Kullback-Leibler divergence up to the entropy of the data."""

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        distribution = flow(batch.condition) if batch.mask is None else flow(batch.condition, batch.mask)
        return -distribution.log_prob(batch.x)
