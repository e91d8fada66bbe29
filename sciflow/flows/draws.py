"""What a flow hands back when it draws."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

__all__ = ["Draws"]


class Draws(NamedTuple):
    """Draws x (B, *event) and what their way to the data has told of them, each (B,) or None.

    `log_prob` is their log-density, `standard_error` that of a stochastic `log_prob` (None where it is exact),
    `evaluations` the number of velocity evaluations, a number where it is the same for all.
    """

    x: Tensor
    log_prob: Tensor | None = None
    standard_error: Tensor | None = None
    evaluations: Tensor | int | None = None
