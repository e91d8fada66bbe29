"""alpha-Flow."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_map import average, span
from sciflow.transport.objectives.mean_flow import MeanFlow
from sciflow.transport.pair import Bridge

__all__ = ["AlphaFlow"]


class AlphaFlow(MeanFlow):
    r"""A curriculum from trajectory flow matching (alpha = 1) to MeanFlow (alpha = 0).

    With y = x_t + alpha (s - t) u_t, the point after the first part of the interval, the loss is

        1/alpha |u(x_t, t, s) - alpha u_t - (1 - alpha) u(y, t + alpha (s - t), s)|^2,

    the second u not differentiated. Its gradient is that of |u - target|^2 with the target
    u_t + (1 - alpha)/alpha (u(y, ...) - u(x_t, t, s)), a difference quotient of MeanFlow's: this is what is computed. alpha
    falls as a sigmoid, 1 - sigmoid(sharpness (k - middle) / (end - begin)) after k steps of the optimiser, set to exactly 1
    or 0 within `margin` of them.

    Arguments:
        begin, end: steps between which alpha falls.
        sharpness, margin: shape of the sigmoid.
        options: see `FlowMapObjective`.

    The count of steps is a buffer: a resumed training goes on with its alpha. Validation is with alpha = 0 throughout.

    Source: AlphaFlow: Understanding and Improving MeanFlow Models, Zhang et al. 2025, arXiv 2510.20771. Sigmoid,
    sharpness and margin agree with the authors' published training code; the gradient-equivalent target is derived here.
    """

    steps: Tensor

    def __init__(
        self, begin: int = 0, end: int = 2000, *, sharpness: float = 25.0, margin: float = 5e-3, **options: Any
    ) -> None:
        super().__init__(**options)
        if not 0 <= begin < end:
            raise UserError(f"begin={begin}, end={end}: alpha falls over a positive number of steps")
        self.begin, self.end, self.sharpness, self.margin = begin, end, sharpness, margin
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._count: int | None = 0  # the same number without asking the device for it
        self.register_load_state_dict_post_hook(lambda module, _: setattr(module, "_count", None))

    @property
    def alpha(self) -> float:
        """Where the curriculum is."""
        if self._count is None:
            self._count = int(self.steps)
        position = (self._count - 0.5 * (self.begin + self.end)) / (self.end - self.begin)
        alpha = 0.5 - 0.5 * math.tanh(0.5 * self.sharpness * position)
        return 1.0 if alpha > 1 - self.margin else 0.0 if alpha < self.margin else alpha

    def after_step(self) -> None:
        self.steps += 1
        self._count = None if self._count is None else self._count + 1

    def target(self, flow: TransportFlow, bridge: Bridge, s: Tensor) -> Tensor:
        alpha = self.alpha if flow.training else 0.0
        if alpha == 0:
            return super().target(flow, bridge, s)
        if alpha == 1:
            return bridge.ut
        with torch.no_grad():
            y = bridge.xt + alpha * span(bridge, s) * bridge.ut
            later = average(flow, bridge.pair, y, bridge.t + alpha * (s - bridge.t), s)
            now = average(flow, bridge.pair, bridge.xt, bridge.t, s)
            return bridge.ut + (1 - alpha) / alpha * (later - now)

    def report(self) -> dict[str, Any]:
        return {"alpha": self.alpha}

    def extra_repr(self) -> str:
        return f"begin={self.begin}, end={self.end}, sharpness={self.sharpness}, margin={self.margin}, {super().extra_repr()}"
