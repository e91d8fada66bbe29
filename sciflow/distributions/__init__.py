"""Base distributions: sampled from a fixed number of uniforms per draw."""

from sciflow.distributions.base import Base
from sciflow.distributions.normal import DiagonalNormal

__all__ = ["Base", "DiagonalNormal"]
