"""How a field is followed: fixed steps, adaptive steps per row, gradients through a backward solve."""

from sciflow.transport.steppers.adaptive import Adaptive
from sciflow.transport.steppers.adaptive_control import SolverFailed
from sciflow.transport.steppers.adjoint import Adjoint
from sciflow.transport.steppers.base import Solution, Stepper
from sciflow.transport.steppers.bespoke import bellman_steps
from sciflow.transport.steppers.endpoint import EndpointStep
from sciflow.transport.steppers.fixed import FixedStep
from sciflow.transport.steppers.map_step import MapStep
from sciflow.transport.steppers.sde import SDEStep
from sciflow.transport.steppers.tableau import TABLEAUS, Tableau

__all__ = [
    "Adaptive",
    "Adjoint",
    "EndpointStep",
    "FixedStep",
    "MapStep",
    "SDEStep",
    "Solution",
    "SolverFailed",
    "Stepper",
    "TABLEAUS",
    "Tableau",
    "bellman_steps",
]
