"""SplitMeanFlow."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.networks.time_network import expand_time
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_map import FlowMapObjective, average, span
from sciflow.transport.pair import Bridge

__all__ = ["SplitMeanFlow"]


class SplitMeanFlow(FlowMapObjective):
    r"""Displacements add up: for t <= r <= s, with y = x_t + (r - t) u(x_t, t, r) the point reached at r,

        (s - t) u(x_t, t, s) = (r - t) u(x_t, t, r) + (s - r) u(y, r, s).

    u(x_t, t, s) is regressed on the right-hand side over s - t, which is not differentiated; r is uniform in between. No
    derivative of the network is needed. What is at s = t must be learned beside (`ratio` below 1): constants fulfil
    the identity alone. The first half ends anywhere: `last` must leave enough such rows (at 0.8 training failed on two moons,
    0.5 was good).

    Source: SplitMeanFlow: Interval Splitting Consistency in Few-Step Generative Modeling, Guo et al. 2025, arXiv 2507.16884.
    """

    def residual(self, flow: TransportFlow, bridge: Bridge, s: Tensor, u: Tensor) -> Tensor:
        return u - self.target(flow, bridge, s)

    def target(self, flow: TransportFlow, bridge: Bridge, s: Tensor) -> Tensor:
        """The two halves, weighted by their lengths."""
        share = torch.rand_like(s)
        r = bridge.t + share * (s - bridge.t)
        share = expand_time(share, bridge.xt)
        with torch.no_grad():
            first = average(flow, bridge.pair, bridge.xt, bridge.t, r)
            second = average(flow, bridge.pair, bridge.xt + share * span(bridge, s) * first, r, s)
            return share * first + (1 - share) * second
