"""Which times an objective looks at: priors, importance weights where the loss keeps its target, and weights of the loss."""

from sciflow.transport.times.base import TimeDensity, TimePrior, Uniform
from sciflow.transport.times.importance import Importance, Stratified
from sciflow.transport.times.priors import LogitNormal, LogUniformNoise, PowerLaw, UShaped
from sciflow.transport.times.weightings import (
    EndpointError,
    LikelihoodWeight,
    MinSNR,
    NetworkError,
    NoiseError,
    NoisePower,
    Weighting,
)

__all__ = [
    "EndpointError",
    "Importance",
    "LikelihoodWeight",
    "LogUniformNoise",
    "LogitNormal",
    "MinSNR",
    "NetworkError",
    "NoiseError",
    "NoisePower",
    "PowerLaw",
    "Stratified",
    "TimeDensity",
    "TimePrior",
    "UShaped",
    "Uniform",
    "Weighting",
]
