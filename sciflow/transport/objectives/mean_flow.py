"""MeanFlow."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_map import FlowMapObjective, derivative, span
from sciflow.transport.pair import Bridge

__all__ = ["MeanFlow"]


class MeanFlow(FlowMapObjective):
    r"""The identity of the average velocity. X = x_t + (s - t) u(x_t, t, s) does not change along the trajectory, so

        0 = d/dt X = v - u + (s - t) Du/Dt,    Du/Dt = du/dt + v . grad u,

    and u is regressed on v + (s - t) Du/Dt with the conditional velocity u_t in the place of v: the target is linear in it, so
    its mean is right. The target is not differentiated. Its variance, about that of u_t carried to s, is what limits short
    trainings; with a `teacher` it is 0. For one jump alone: `MeanFlow(ratio=0.9, last=1.0, teacher=flow)`.

    See `FlowMapObjective` for the arguments; the paper uses ratio 0.25, power 1 and logit-normal times.

    Source: Mean Flows for One-step Generative Modeling, Geng et al. 2025, arXiv 2505.13447.
    """

    def residual(self, flow: TransportFlow, bridge: Bridge, s: Tensor, u: Tensor) -> Tensor:
        return u - self.target(flow, bridge, s)

    def target(self, flow: TransportFlow, bridge: Bridge, s: Tensor) -> Tensor:
        """u_t + (s - t) Du/Dt."""
        with torch.no_grad():
            return bridge.ut + span(bridge, s) * derivative(flow, bridge, s, dx=bridge.ut, dt=1.0, step=self.step)
