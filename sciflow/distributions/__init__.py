"""Base distributions: sampled from a fixed number of uniforms per draw."""

from sciflow.distributions.base import Base
from sciflow.distributions.mean_free import MeanFreeNormal
from sciflow.distributions.mixture import Mixture
from sciflow.distributions.normal import DiagonalNormal
from sciflow.distributions.product import Product
from sciflow.distributions.student import StudentT
from sciflow.distributions.tails import tail_index
from sciflow.distributions.uniform import BoxUniform, CircleUniform

__all__ = [
    "Base",
    "BoxUniform",
    "CircleUniform",
    "DiagonalNormal",
    "MeanFreeNormal",
    "Mixture",
    "Product",
    "StudentT",
    "tail_index",
]
