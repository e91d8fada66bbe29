"""Networks: features-first ones that hyper-parameterise flows, and networks of time that are a velocity."""

from sciflow.networks.autoencoder import Autoencoder, DenseAutoencoder, PrincipalComponents
from sciflow.networks.default import default_network
from sciflow.networks.image_conditioned import ImageConditionedUNet
from sciflow.networks.masked import MaskedMLP
from sciflow.networks.mlp import MLP, Constant
from sciflow.networks.residual import ResidualMLP
from sciflow.networks.time_network import TimeMLP, TimeNetwork, expand_time
from sciflow.networks.transformer import Transformer
from sciflow.networks.unet import UNet

__all__ = [
    "MLP",
    "Autoencoder",
    "Constant",
    "DenseAutoencoder",
    "ImageConditionedUNet",
    "MaskedMLP",
    "PrincipalComponents",
    "ResidualMLP",
    "TimeMLP",
    "TimeNetwork",
    "Transformer",
    "UNet",
    "default_network",
    "expand_time",
]
