"""Event shapes as they are given: a number of features, or a shape."""

from __future__ import annotations

from collections.abc import Sequence

import torch

__all__ = ["shape_of"]


def shape_of(event_shape: int | Sequence[int]) -> torch.Size:
    """An integer D means a vector of D features.

    >>> shape_of(3), shape_of((1, 8, 8))
    (torch.Size([3]), torch.Size([1, 8, 8]))
    """
    return torch.Size((event_shape,) if isinstance(event_shape, int) else event_shape)
