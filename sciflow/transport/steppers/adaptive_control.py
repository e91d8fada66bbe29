"""Step sizes per row: error norms, the first step, and the controller."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["Controller", "ErrorNorm", "SolverFailed"]


class SolverFailed(UserError):
    """An adaptive solver cannot go on: it names the row, the time, the step size and the error estimate."""


class ErrorNorm(NamedTuple):
    r"""Root mean square over the present features of error / (atol + rtol |x|), per row."""

    rtol: float
    atol: float
    mask: Tensor | None

    def __call__(self, error: Tensor, x: Tensor, y: Tensor | None = None) -> Tensor:
        """(B,) for errors (B, *event) beside x, and y at the other end of the step."""
        size = x.abs() if y is None else torch.maximum(x.abs(), y.abs())
        square = (error / (self.atol + self.rtol * size)).square().flatten(1)
        if self.mask is None:
            return square.mean(1).sqrt()
        present = self.mask.flatten(1)
        return ((square * present).sum(1) / present.sum(1).clamp_min(1)).sqrt()

    def columns(self, error: Tensor, before: Tensor, after: Tensor) -> Tensor:
        """(B,) for accumulated log-determinants (B, K), whose unit is the nat: a large one needs no large precision."""
        scale = self.atol + self.rtol * torch.maximum(before.abs(), after.abs()).clamp_min(1.0)
        return (error / scale).square().mean(1).sqrt()


class Controller(NamedTuple):
    """Proportional-integral step control: factor = safety error^(-0.85/k) previous^(0.2/k) for an error of order k.

    Source: Solving Ordinary Differential Equations II, Hairer and Wanner, section IV.2.
    """

    order: int
    safety: float = 0.9
    smallest: float = 0.2
    largest: float = 10.0

    def expected(self, tolerance: float, span: float) -> float:
        """span tolerance^(1/k): right for solutions that change on the scale of the interval, as those of flows do.

        It takes no evaluation. A step that is too long is rejected, after which steps may grow fast again up to this length.
        """
        return span * min(1.0, tolerance ** (1 / self.order))

    def factor(self, error: Tensor, previous: Tensor, accepted: Tensor, room: Tensor) -> Tensor:
        """By how much the next step is larger; a rejected one is never followed by a larger one.

        `room` is the expected step over this one: up to there steps grow by `largest`. Beyond it the estimate counts with
        the weaker power -0.35 / k: that of a long step is often small by chance, and such rows make most of the error.
        """
        bounded = error.clamp_min(1e-10)
        grown = self.safety * bounded ** (-0.85 / self.order) * previous ** (0.2 / self.order)
        careful = torch.maximum(room.clamp(1.0, self.largest), self.safety * bounded ** (-0.35 / self.order))
        shrunk = (self.safety * bounded ** (-1 / self.order)).clamp_max(1.0)
        factor = torch.where(accepted, torch.minimum(grown, careful), shrunk).clamp(self.smallest, self.largest)
        return torch.where(torch.isfinite(error), factor, 0.1)

    def smallest_step(self, t: Tensor, span: float) -> Tensor:
        """Below this, t + h is t up to rounding."""
        return 4 * torch.finfo(t.dtype).eps * t.abs().clamp_min(span)


def failure(
    row: int, t: float, h: float, error: float, method: str, rtol: float, atol: float, steps: int | None
) -> SolverFailed:
    """The message."""
    reason = f"did not finish in {steps} steps" if steps is not None else "needs steps below the rounding of t"
    finite = math.isfinite(error) and math.isfinite(h)  # a step of NaN: the very first velocity was not finite
    estimate = f"{error:.3g} times the tolerance" if finite else "nan (the velocity is not finite)"
    return SolverFailed(
        f"row {row}: {method} (rtol={rtol:g}, atol={atol:g}) {reason} at t = {t:.6g}, step {h:.3g}, error estimate {estimate}; "
        "loosen the tolerances, allow more steps, or look at the field there"
    )
