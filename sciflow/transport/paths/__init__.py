"""Paths: how noise and data are bridged."""

from sciflow.transport.paths.base import AffinePath, Path
from sciflow.transport.paths.geodesic import Geodesic
from sciflow.transport.paths.interpolant import StochasticInterpolant
from sciflow.transport.paths.linear import Linear
from sciflow.transport.paths.noisy import NoisyPath
from sciflow.transport.paths.schedules import Cosine, LinearBeta, Polynomial, ScheduledPath, VariancePreserving
from sciflow.transport.paths.schroedinger import SchroedingerBridge

__all__ = [
    "AffinePath",
    "Cosine",
    "Geodesic",
    "Linear",
    "LinearBeta",
    "NoisyPath",
    "Path",
    "Polynomial",
    "ScheduledPath",
    "SchroedingerBridge",
    "StochasticInterpolant",
    "VariancePreserving",
]
