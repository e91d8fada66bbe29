"""The contract of an invertible layer over images."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

__all__ = ["ImageLayer"]


class ImageLayer(nn.Module, ABC):
    """One invertible layer on images x (B, C, H, W), given feature maps (B, F, H', W') of the same size as x, or None.

    Both directions return the mapped images and the log-determinant of that direction (B,). Device and dtype of the result
    are those of x, under autocast too.
    """

    @abstractmethod
    def forward(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Towards the latent."""

    @abstractmethod
    def inverse(self, z: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Towards the data."""
