"""The stepper that a flow has unless it is given another."""

from __future__ import annotations

from sciflow.transport.heads.base import Head
from sciflow.transport.spaces.base import Space
from sciflow.transport.steppers.base import Stepper
from sciflow.transport.steppers.endpoint import EndpointStep
from sciflow.transport.steppers.fixed import FixedStep

__all__ = ["default_stepper"]


def default_stepper(head: Head, space: Space) -> Stepper:
    """Eight steps of order five; where the velocity is singular at t = 1, fifty that do not evaluate it there."""
    if not head.endpoint_stepping:
        return FixedStep(8, method="bogacki_shampine5")
    return EndpointStep(50) if space.euclidean else FixedStep(50, method="midpoint")
