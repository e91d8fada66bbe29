"""Flows over images: multi-scale couplings with feature maps from a conditioning U-Net."""

from sciflow.flows.image.activation_norm import ActNorm
from sciflow.flows.image.coupling import ConvolutionalNetwork, ImageCoupling
from sciflow.flows.image.encoder import FeatureEncoder, PyramidEncoder, level_sizes
from sciflow.flows.image.flow import ImageFlow
from sciflow.flows.image.layer import ImageLayer
from sciflow.flows.image.mixing import ChannelMixing
from sciflow.flows.image.pyramid import Pyramid
from sciflow.flows.image.squeezing import Squeeze, squeeze_factors

__all__ = [
    "ActNorm",
    "ChannelMixing",
    "ConvolutionalNetwork",
    "FeatureEncoder",
    "ImageCoupling",
    "ImageFlow",
    "ImageLayer",
    "Pyramid",
    "PyramidEncoder",
    "Squeeze",
    "level_sizes",
    "squeeze_factors",
]
