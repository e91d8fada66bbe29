"""A shift of the data that is not learned: the condition holds a guess of them already."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.shapes import shape_of
from sciflow.transport.bases.shift import Shift

__all__ = ["MinusContext"]


class MinusContext(Shift):
    """-m, the first entries of the context in the shape of an event: as `target_shift` the transport lives on x - m.

    With `Concatenate` these are the first entries, row by row, of the leaf whose name is the first in alphabetical order. A
    guess m of the data, such as a linear reconstruction, leaves to the flow what the guess lacks: less, and closer to noise.

    Arguments:
        event_shape: of the rows; an integer D means (D,).
        context: number of features of the flow's context, at least those of an event.

    Source: the shift is that of CAR-Flow, Chen et al. 2025, arXiv 2509.19300, given instead of learned.

    >>> MinusContext((2, 1, 2), 6)(torch.arange(1.0, 7.0).unsqueeze(0)).flatten()
    tensor([-1., -2., -3., -4.])
    """

    def __init__(self, event_shape: int | Sequence[int], context: int) -> None:
        torch.nn.Module.__init__(self)  # not that of `Shift`: there is nothing to learn
        self.event_shape, self.context = shape_of(event_shape), context
        if self.event_shape.numel() > context:
            raise UserError(f"a context of {context} features holds no guess of shape {tuple(self.event_shape)}")

    def forward(self, context: Tensor | None, mask: Tensor | None = None) -> Tensor:
        if context is None or context.shape[-1] != self.context:
            found = "none" if context is None else str(tuple(context.shape))
            raise ValueError(f"the shift needs a context of shape (B, {self.context}), got {found}")
        shift = -context[..., : self.event_shape.numel()].reshape(-1, *self.event_shape)
        return shift if mask is None else shift * mask
