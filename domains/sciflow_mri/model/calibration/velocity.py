"""Velocities of coil vectors: the best affine one in closed form, and a small network for what is not normal."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.networks import TimeMLP
from sciflow.networks.time_network import TimeNetwork
from sciflow.transport import TransportFlow

__all__ = ["PlaceVelocity", "complex_rows", "place_flow", "real_rows"]

_BEND = 3.0


def real_rows(vectors: Tensor) -> Tensor:
    """Complex (..., C) as (..., 2 C): real parts, then imaginary parts.

    >>> complex_rows(real_rows(torch.tensor([[1 + 2j]])))
    tensor([[1.+2.j]])
    """
    return torch.cat([vectors.real, vectors.imag], -1)


def complex_rows(rows: Tensor) -> Tensor:
    """The inverse of `real_rows`."""
    return torch.complex(*rows.chunk(2, -1))


class PlaceVelocity(TimeNetwork):
    r"""The velocity of z_t = t z + (1 - t) n for whitened coil vectors z of one place r of the image, which is the condition:

        v(z_t, t, r) = (t K_r - (1 - t)) (t^2 K_r + (1 - t)^2)^-1 z_t  +  F(z_t / n, t, r) / n,     n^2 = t^2 + (1 - t)^2,

    with K_r = E z z' / 2 at r (the mean is zero, since a common phase is free). The first term is the least-squares fit of flow
    matching among affine velocities, and all of it for normal data; F, a small network that starts at zero, learns the rest.

    Arguments:
        coils: C; rows are (2 C,), see `real_rows`.
        places, features: r is a number below `places` that F knows by `features` numbers, see `describe`.
        hidden: widths of F.

    >>> network = PlaceVelocity(2, 3, 1)
    >>> network(torch.ones(4, 4), torch.full((4,), 0.5), torch.zeros(4, 1)).abs().max() < 1e-6  # K = 1: no velocity at t = 1/2
    tensor(True)
    """

    def __init__(self, coils: int, places: int, features: int, *, hidden: Sequence[int] = (64, 64)) -> None:
        super().__init__()
        self.event_shape, self.context, self.channels = torch.Size([2 * coils]), 1, 1
        self.network = TimeMLP(2 * coils, features, hidden=tuple(hidden))
        *first, last = (layer for layer in self.network.layers if isinstance(layer, nn.Linear))
        for layer in first:  # what is left to learn is curved; layers of small weights start straight and take long to bend
            nn.init.normal_(layer.weight, std=(2 * _BEND / layer.in_features) ** 0.5)
            nn.init.uniform_(layer.bias, -1, 1)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        eye = torch.eye(coils).expand(places, coils, coils)
        self.values: Tensor
        self.bases: Tensor
        self.features: Tensor
        self.register_buffer("values", torch.ones(places, coils))
        self.register_buffer("bases", torch.stack([eye, torch.zeros_like(eye)], -1))  # complex buffers lose parts in `.to`
        self.register_buffer("features", torch.zeros(places, features))

    def describe(self, features: Tensor) -> None:
        """What F knows of the places, (places, features)."""
        self.features.copy_(features)

    def assume(self, covariance: Tensor) -> None:
        """Set K (places, C, C), complex."""
        values, bases = torch.linalg.eigh(covariance)
        self.values.copy_(values)
        self.bases.copy_(torch.view_as_real(bases))

    def remainder(self, x: Tensor, t: Tensor, place: Tensor) -> Tensor:
        """The second term (B, 2 C) at places (B,)."""
        size = (t.square() + (1 - t).square()).rsqrt().unsqueeze(1)
        return size * self.network(x * size, t, self.features[place])[:, 0]

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        assert context is not None
        place, t = context[:, 0].long(), t.to(x.dtype).expand(len(x))
        wide = t.unsqueeze(1)
        values, bases = self.values[place].to(x.dtype), torch.view_as_complex(self.bases)[place].to(x.dtype.to_complex())
        rate = (wide * values - (1 - wide)) / (wide.square() * values + (1 - wide).square())
        turned = bases.mH @ complex_rows(x).unsqueeze(-1)
        line = (bases @ (rate.unsqueeze(-1) * turned)).squeeze(-1)
        return (real_rows(line) + self.remainder(x, t, place)).unsqueeze(1)


def place_flow(coils: int, features: Tensor, *, hidden: Sequence[int] = (64, 64)) -> TransportFlow:
    """A flow of whitened coil vectors (2 C,) given the number of a place as condition (1,); features (places, F)."""
    network = PlaceVelocity(coils, len(features), features.shape[1], hidden=hidden)
    network.describe(features)
    return TransportFlow(2 * coils, 1, network=network)
