"""Flows: weights that, given a condition, become a distribution."""

from sciflow.flows.base import Flow, FlowDistribution
from sciflow.flows.condition import Concatenate, Encoder
from sciflow.flows.layered import Layer, LayeredFlow

__all__ = ["Concatenate", "Encoder", "Flow", "FlowDistribution", "Layer", "LayeredFlow"]
