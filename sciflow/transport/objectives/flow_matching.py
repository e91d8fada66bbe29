"""Flow matching."""

from __future__ import annotations

from torch import Tensor

from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.base import TransportObjective
from sciflow.transport.pair import Bridge

__all__ = ["FlowMatching"]


class FlowMatching(TransportObjective):
    """The head's loss at a point of the conditional path; for a velocity E|v(x_t, t) - u_t|^2 / features.

    Source: Flow Matching for Generative Modeling, Lipman et al. 2022, arXiv 2210.02747.
    """

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        return flow.head.nll(self.output(flow, bridge), bridge, flow.path)
