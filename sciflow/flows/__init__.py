"""Flows: weights that, given a condition, become a distribution."""

from sciflow.flows.base import Flow
from sciflow.flows.condition import Concatenate, Encoder
from sciflow.flows.dequantisation import Dequantisation, TruncatedNormal, UniformNoise, Variational
from sciflow.flows.dequantised import Dequantised
from sciflow.flows.distribution import FlowDistribution
from sciflow.flows.draws import Draws
from sciflow.flows.foreign import from_nflows, from_zuko
from sciflow.flows.latent import LatentFlow
from sciflow.flows.layered import Layer, LayeredFlow
from sciflow.flows.masked_affine import MaskedAffineFlow
from sciflow.flows.neural_spline import NeuralSplineFlow
from sciflow.flows.preprocessed import Preprocessed
from sciflow.flows.set_encoder import SetEncoder, padded
from sciflow.flows.wrapper import Wrapper

__all__ = [
    "Concatenate",
    "Dequantisation",
    "Dequantised",
    "Draws",
    "Encoder",
    "Flow",
    "FlowDistribution",
    "LatentFlow",
    "Layer",
    "LayeredFlow",
    "MaskedAffineFlow",
    "NeuralSplineFlow",
    "Preprocessed",
    "SetEncoder",
    "TruncatedNormal",
    "UniformNoise",
    "Variational",
    "Wrapper",
    "from_nflows",
    "from_zuko",
    "padded",
]
