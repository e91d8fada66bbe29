"""Guidance: fields that wrap fields, to steer a trained flow while it is sampled."""

from sciflow.transport.guidance.base import Guidance
from sciflow.transport.guidance.classifier_free import ClassifierFree
from sciflow.transport.guidance.combination import Composed, Scheduled
from sciflow.transport.guidance.constraint import Constraint, LinearConstraint
from sciflow.transport.guidance.density import DensityGuidance, PriorGuidance
from sciflow.transport.guidance.rescheduled import Rescheduled
from sciflow.transport.guidance.schedule import CosineRamp, Interval, PiecewiseLinear, Schedule
from sciflow.transport.guidance.tilt import Classifier, EndpointEnergy, Tilt

__all__ = [
    "Classifier",
    "ClassifierFree",
    "Composed",
    "Constraint",
    "CosineRamp",
    "DensityGuidance",
    "EndpointEnergy",
    "Guidance",
    "Interval",
    "LinearConstraint",
    "PiecewiseLinear",
    "PriorGuidance",
    "Rescheduled",
    "Schedule",
    "Scheduled",
    "Tilt",
]
