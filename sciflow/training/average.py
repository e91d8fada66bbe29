"""Exponential moving average of weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from sciflow.errors import UserError

__all__ = ["MovingAverage"]


class MovingAverage:
    r"""a <- a + (1 - d_t) (w - a) with the warm-up d_t = min(decay, (1 + t) / (10 + t)), t the number of updates.

    The warm-up keeps the random initial weights out of short trainings. Buffers are not averaged.

    >>> layer = nn.Linear(1, 1, bias=False)
    >>> average = MovingAverage(layer, 0.9)
    >>> with torch.no_grad():
    ...     _ = layer.weight.fill_(1.0)
    >>> average.update(0); float(average.values["weight"]) > 0.8
    True
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise UserError(f"ema={decay} is no decay: give a number between 0 and 1, such as 0.999")
        self.decay = decay
        self.weights = {name: weight for name, weight in module.named_parameters() if weight.requires_grad}
        self.values = {name: weight.detach().clone() for name, weight in self.weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Follow the weights after optimiser step number `step` (from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.values.values()), [w.detach() for w in self.weights.values()], 1 - decay)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Inside, the module has the averaged weights."""
        own = {name: weight.detach().clone() for name, weight in self.weights.items()}
        self._assign(self.values)
        try:
            yield
        finally:
            self._assign(own)

    @torch.no_grad()
    def _assign(self, values: dict[str, Tensor]) -> None:
        for name, weight in self.weights.items():
            weight.copy_(values[name])
