"""Heads: what the output of the network means."""

from sciflow.transport.heads.base import Head
from sciflow.transport.heads.categorical import CategoricalEndpoint
from sciflow.transport.heads.endpoint import Endpoint
from sciflow.transport.heads.mixture import GaussianMixture
from sciflow.transport.heads.velocity import Velocity
from sciflow.transport.heads.velocity_and_noise import VelocityAndNoise

__all__ = ["CategoricalEndpoint", "Endpoint", "GaussianMixture", "Head", "Velocity", "VelocityAndNoise"]
