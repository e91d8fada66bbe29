"""Losses weighted along the path."""

from __future__ import annotations

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.flow import TransportFlow
from sciflow.transport.heads.velocity import Velocity
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.pair import Bridge
from sciflow.transport.times import TimePrior, Weighting

__all__ = ["WeightedFlowMatching"]


class WeightedFlowMatching(FlowMatching):
    r"""E_t weight(t) |v(x_t, t) - u_t|^2 / features, the weight from a `Weighting` of the path's coefficients.

    Times and weights are independent choices: the weighting says what is minimised, an `Importance` prior how its integral is
    estimated. A prior without weights of its own multiplies the weighting by its density.

    Raises `UserError` for heads that do not predict the velocity: their losses have weights of their own.

    >>> from sciflow.transport.times import Importance, LogUniformNoise, MinSNR
    >>> WeightedFlowMatching(MinSNR(), times=Importance(LogUniformNoise())).weighting
    MinSNR(gamma=5.0)
    """

    velocity_only = True

    def __init__(
        self, weighting: Weighting, *, coupling: Coupling | None = None, times: TimePrior | None = None,
        drop_condition: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(coupling=coupling, times=times, drop_condition=drop_condition)
        self.weighting = weighting

    def loss(self, flow: TransportFlow, bridge: Bridge) -> Tensor:
        if not isinstance(flow.head, Velocity):
            raise UserError(f"{self.weighting!r} weighs errors of the velocity, the head is {flow.head!r}: use Velocity()")
        return super().loss(flow, bridge) * self.weighting(bridge.t, flow.path)

    def extra_repr(self) -> str:
        return f"weighting={self.weighting!r}, {super().extra_repr()}"
