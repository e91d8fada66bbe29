"""Self-distillation of flow maps."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_map import FlowMapObjective, average, derivative, span
from sciflow.transport.pair import Bridge

__all__ = ["FlowMapDistillation"]


class FlowMapDistillation(FlowMapObjective):
    r"""The flow map X_ts(x) = x + (s - t) u(x, t, s) obeys two equations with its own velocity v(x, t) = u(x, t, t):

        lagrangian:  d/ds X_ts(x) = v(X_ts(x), s)               residual  u + (s - t) du/ds - v(X, s)
        eulerian:    d/dt X_ts(x) + v(x, t) . grad X_ts(x) = 0   residual  u - v(x, t) - (s - t) Du/Dt

    On the diagonal s = t the velocity is learned by flow matching. The map's velocity v is a teacher and not differentiated.
    In the Lagrangian form the gradient flows through u and du/ds. In the Eulerian one all of Du/Dt belongs to the target, as in
    MeanFlow. There the authors' code stops the gradient of the spatial term v . grad u alone and lets that of du/dt flow: this
    iterates the spatial term against the inverse of 1 - (s - t) d/dt, which amplifies what is rough in x, and diverged here.

    Arguments:
        form: "lagrangian" or "eulerian".
        options: see `FlowMapObjective`.

    Source: How to build a consistency model: Learning flow maps via self-distillation, Boffi et al. 2025, arXiv 2505.18825.
    """

    def __init__(self, form: str = "lagrangian", **options: Any) -> None:
        super().__init__(**options)
        if form not in ("lagrangian", "eulerian"):
            raise UserError(f"unknown form {form!r}; known are lagrangian, eulerian")
        self.form = form

    def residual(self, flow: TransportFlow, bridge: Bridge, s: Tensor, u: Tensor) -> Tensor:
        pair, x, t = bridge.pair, bridge.xt, bridge.t
        if self.form == "lagrangian":
            with torch.no_grad():
                reached = x + span(bridge, s) * u
                velocity = average(flow, pair, reached, s, s)
            return u + span(bridge, s) * derivative(flow, bridge, s, ds=1.0, step=self.step) - velocity
        with torch.no_grad():
            velocity = average(flow, pair, x, t, t)
            slope = derivative(flow, bridge, s, dx=velocity, dt=1.0, step=self.step)
        return u - velocity - span(bridge, s) * slope

    def extra_repr(self) -> str:
        return f"form={self.form!r}, {super().extra_repr()}"
