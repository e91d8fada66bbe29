"""Flows: weights that, given a condition, become a distribution."""

from sciflow.flows.base import Flow, FlowDistribution
from sciflow.flows.condition import Concatenate, Encoder
from sciflow.flows.foreign import from_nflows, from_zuko
from sciflow.flows.layered import Layer, LayeredFlow
from sciflow.flows.masked_affine import MaskedAffineFlow
from sciflow.flows.neural_spline import NeuralSplineFlow
from sciflow.flows.preprocessed import Preprocessed

__all__ = [
    "Concatenate",
    "Encoder",
    "Flow",
    "FlowDistribution",
    "Layer",
    "LayeredFlow",
    "MaskedAffineFlow",
    "NeuralSplineFlow",
    "Preprocessed",
    "from_nflows",
    "from_zuko",
]
