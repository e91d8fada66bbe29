"""A transformer over the entries of parameters and data together."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.attention import Attention
from sciflow.networks.embedding import Embedding, Modulation
from sciflow.networks.time_network import TimeNetwork

__all__ = ["JointNetwork"]


class JointNetwork(TimeNetwork):
    r"""The velocity of parameters (and, in training, of data) given whatever part of them is known.

    Each of the D parameters is a token, each of the `places` data entries is one, of `entry` features. A token is what it is
    (a learned vector), its value (a small network of its own), and whether it is known or still to be transported. As a
    `TimeNetwork` it is the velocity of the parameters given the data: x (B, D), context (B, places * (entry + 1)), the
    values and then 1 or 0 for present or missing. Missing entries are attended to by nobody.

    Arguments:
        event_shape: D, or (D,).
        places: largest number of data entries.
        entry: features of one data entry.
        exchangeable: data entries share one learned vector and one network: their order means nothing.
        width, blocks, heads: of the transformer.
        frequencies: cosines and sines of each value that enter beside it, from 1 to 2^(frequencies - 1) radians per unit.
        dropout: in the blocks, while training.

    Source: All-in-one simulation-based inference, Gloeckler et al. 2024, arXiv 2404.09636.

    >>> network = JointNetwork(2, 3, width=16, blocks=1, heads=2)
    >>> network(torch.zeros(5, 2), torch.zeros(5), torch.ones(5, 6)).shape
    torch.Size([5, 1, 2])
    """

    def __init__(
        self, event_shape: int | tuple[int, ...], places: int, entry: int = 1, *, exchangeable: bool = False,
        width: int = 64, blocks: int = 4, heads: int = 4, frequencies: int = 4, dropout: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__()
        shape = (event_shape,) if isinstance(event_shape, int) else tuple(event_shape)
        if len(shape) != 1:
            raise UserError(f"the joint transformer takes parameters that are vectors (D,), not {shape}")
        self.event_shape, self.channels = torch.Size(shape), 1
        self.parameters_count, self.places, self.entry, self.exchangeable = shape[0], places, entry, exchangeable
        self.context = places * (entry + 1)
        self.embedding = Embedding(width)
        self.number = nn.Linear(1, width)  # attention averages: it does not count what it sees
        self.first_parameters = _Values(shape[0], 1, width, frequencies)
        self.first_data = _Values(1 if exchangeable else places, entry, width, frequencies)
        self.known = nn.Parameter(torch.randn(2, width) * 0.5)
        self.blocks = nn.ModuleList(_Block(width, heads, dropout) for _ in range(blocks))
        self.norm = nn.LayerNorm(width)
        self.last_parameters = _PerToken(shape[0], width, 1)
        self.last_data = _PerToken(1 if exchangeable else places, width, entry)

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        self.check_times(s)
        if context is None:
            raise ValueError("the joint transformer needs data")
        y, present = self.split(context)
        known = torch.zeros(1, self.parameters_count + self.places, dtype=torch.bool, device=x.device)
        known[:, self.parameters_count :] = True
        return self.velocities(x, y, t, known, present, data=False)[0].unsqueeze(1)

    def split(self, context: Tensor) -> tuple[Tensor, Tensor]:
        """Values (B, places, entry) and presence (B, places) from a context."""
        values, present = context.split([self.places * self.entry, self.places], 1)
        return values.reshape(len(context), self.places, self.entry), present > 0.5

    def velocities(
        self, x: Tensor, y: Tensor, t: Tensor, known: Tensor, present: Tensor, *, data: bool = True
    ) -> tuple[Tensor, Tensor | None]:
        """Velocities of parameters (B, D) and, if asked for, of data (B, places, entry).

        `known` (B, D + places) says which tokens hold their final value, `present` (B, places) which data exist.
        """
        y = torch.where(present.unsqueeze(2), y, 0)
        h = torch.cat((self.first_parameters(x.unsqueeze(2)), self.first_data(y)), 1)
        h = h + torch.where(known.unsqueeze(2), self.known[0], self.known[1])
        there = torch.cat((present.new_ones(len(x), self.parameters_count), present), 1)
        every = None if not torch.compiler.is_compiling() and bool(present.all()) else there
        number = torch.log1p((present & known[:, self.parameters_count :]).sum(1, keepdim=True).to(x.dtype))
        embedding = self.embedding(t.to(x.dtype)) + self.number(number)
        for block in self.blocks:
            h = block(h, embedding, every)
        h = self.norm(h)
        count = self.parameters_count
        theta = self.last_parameters(h[:, :count]).squeeze(2)
        return theta, self.last_data(h[:, count:]) if data else None


class _Values(nn.Module):
    """Values (B, N, entry) as tokens (B, N, width), each place by its own small network."""

    frequencies: Tensor

    def __init__(self, places: int, entry: int, width: int, frequencies: int) -> None:
        super().__init__()
        size = entry * (1 + 2 * frequencies)
        self.inner = _PerToken(places, size, width)
        self.outer = nn.Linear(width, width)
        self.identity = nn.Parameter(torch.randn(places, width) * 0.5)
        self.register_buffer("frequencies", 2.0 ** torch.arange(frequencies), persistent=False)

    def forward(self, values: Tensor) -> Tensor:
        angles = (values.unsqueeze(3) * self.frequencies).flatten(2)
        features = torch.cat((values, angles.sin(), angles.cos()), 2)
        return self.identity + self.outer(nn.functional.silu(self.inner(features)))


class _PerToken(nn.Module):
    """A linear layer of its own for each place; one for all if there is one."""

    def __init__(self, places: int, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(places, inputs, outputs) / inputs**0.5)
        self.bias = nn.Parameter(torch.zeros(places, outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        if len(self.weight) == 1:
            return tokens @ self.weight[0] + self.bias
        return torch.bmm(tokens.transpose(0, 1), self.weight).transpose(0, 1) + self.bias


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(width, elementwise_affine=False) for _ in range(2))
        self.modulation = Modulation(width, width, 6)
        self.attention = Attention(width, heads)
        self.perceptron = nn.Sequential(
            nn.Linear(width, 3 * width), nn.GELU(), nn.Dropout(dropout), nn.Linear(3 * width, width)
        )

    def forward(self, h: Tensor, embedding: Tensor, present: Tensor | None) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(embedding, h)
        h = h + (1 + gate) * self.attention(self.norms[0](h) * (1 + scale) + shift, present)
        return h + (1 + gate2) * self.perceptron(self.norms[1](h) * (1 + scale2) + shift2)
