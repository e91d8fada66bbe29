"""Bases of transports: noise moved by the condition, rows of data, another flow, noise on a manifold."""

from sciflow.transport.bases.empirical import Empirical
from sciflow.transport.bases.flow_base import FlowBase
from sciflow.transport.bases.manifold import UniformOn, WrappedNormal, base_on
from sciflow.transport.bases.shift import ConditionShift, Shift

__all__ = ["ConditionShift", "Empirical", "FlowBase", "Shift", "UniformOn", "WrappedNormal", "base_on"]
