"""What travels through a transport objective: pairs of endpoints, and points on the bridges between them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

__all__ = ["Bridge", "Pair"]


class Pair(NamedTuple):
    """Endpoints x0 (noise or source) and x1 (data), both (B, *event), with everything that belongs to the data.

    Couplings may permute, resample or reweight x0 against x1; x1, condition, context and mask stay where they are, so a
    label cannot be mismatched and every target is kept. `weight` (B,) is relative, None for equal weights.
    """

    x0: Tensor
    x1: Tensor
    condition: Any = None  # as the user gave it: a tensor or a (nested) dict of tensors
    weight: Tensor | None = None
    mask: Tensor | None = None
    context: Tensor | None = None  # what the flow's encoder made of the condition


class Bridge(NamedTuple):
    """One draw of the conditional path: time t (B,), point xt and its conditional velocity ut, both (B, *event).

    `noise` is the standard normal that a noisy path added at t, None for deterministic paths.
    """

    pair: Pair
    t: Tensor
    xt: Tensor
    ut: Tensor
    noise: Tensor | None = None
