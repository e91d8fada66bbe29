"""Autoencoders: between events and latents, with a loss on the way."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.mlp import activation_of
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of

__all__ = ["Autoencoder", "DenseAutoencoder", "PrincipalComponents"]


class Autoencoder(nn.Module, Recorded, ABC):
    """encode: x (B, *event_shape) -> z (B, *latent_shape); decode: back, not exactly."""

    event_shape: torch.Size
    latent_shape: torch.Size

    @abstractmethod
    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, *latent_shape); while training they may be random."""

    @abstractmethod
    def decode(self, z: Tensor) -> Tensor:
        """Events (B, *event_shape)."""

    def forward(self, x: Tensor) -> Tensor:
        """What is left of x."""
        return self.decode(self.encode(x))


class PrincipalComponents(Autoencoder):
    """The linear autoencoder of the least squared error: z = V^T (x - m), with the leading eigenvectors V of the covariance.

    Fitted by `fit`, without a training; mean and directions are buffers, so it is frozen.

    >>> x = torch.randn(100, 1) * torch.tensor([[3.0, 4.0]])
    >>> components = PrincipalComponents(2, 1).fit(x)
    >>> bool((components(x) - x).abs().max() < 1e-5)
    True
    """

    mean: Tensor
    directions: Tensor

    def __init__(self, event_shape: int | tuple[int, ...], components: int) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        size = math.prod(self.event_shape)
        if not 1 <= components <= size:
            raise UserError(f"components={components}: an event of {size} features has 1 to {size}")
        self.latent_shape = torch.Size((components,))
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("directions", torch.eye(size)[:, :components].clone())

    @torch.no_grad()
    def fit(self, x: Tensor) -> PrincipalComponents:
        """From rows x (N, *event_shape)."""
        rows = x.flatten(1).double()
        mean = rows.mean(0)
        values, vectors = torch.linalg.eigh((rows - mean).T @ (rows - mean) / max(len(rows) - 1, 1))
        self.mean.copy_(mean)
        self.directions.copy_(vectors[:, values.argsort(descending=True)[: self.latent_shape[0]]])
        return self

    def encode(self, x: Tensor) -> Tensor:
        return (x.flatten(1) - self.mean) @ self.directions

    def decode(self, z: Tensor) -> Tensor:
        return (z @ self.directions.T + self.mean).reshape(-1, *self.event_shape)


class DenseAutoencoder(Autoencoder):
    """Fully connected layers to a latent vector and back.

    >>> DenseAutoencoder((1, 4, 4), 3, hidden=(8,)).encode(torch.zeros(5, 1, 4, 4)).shape
    torch.Size([5, 3])
    """

    def __init__(
        self, event_shape: int | tuple[int, ...], latent: int, *, hidden: Sequence[int] = (256, 256), activation: str = "silu"
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        self.latent_shape = torch.Size((latent,))
        sizes = [math.prod(self.event_shape), *hidden, latent]
        self.encoder = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.decoder = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes[::-1]))
        self.activate = activation_of(activation)

    def encode(self, x: Tensor) -> Tensor:
        return self._through(self.encoder, x.flatten(1))

    def decode(self, z: Tensor) -> Tensor:
        return self._through(self.decoder, z).reshape(-1, *self.event_shape)

    def _through(self, layers: nn.ModuleList, h: Tensor) -> Tensor:
        for layer in layers[:-1]:
            h = self.activate(layer(h))
        return layers[-1](h)
