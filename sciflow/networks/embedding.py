"""Times and context as one vector, and how it steers the layers of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["Embedding", "Modulation", "sinusoids"]


def sinusoids(t: Tensor, count: int, highest: float = 100.0) -> Tensor:
    r"""cos(w_k t) and sin(w_k t) of times t (B,), (B, 2 count), with w_k from 1 to `highest` in equal ratios.

    A velocity has to be smooth in time for a solver to follow it, so the highest frequency is moderate.

    >>> sinusoids(torch.zeros(3), 2)[0]
    tensor([1., 1., 0., 0.])
    """
    exponents = torch.arange(count, device=t.device, dtype=t.dtype) / max(count - 1, 1)
    angles = t.unsqueeze(1) * torch.exp(exponents * math.log(highest))
    return torch.cat((angles.cos(), angles.sin()), 1)


class Embedding(nn.Module):
    """Times t (and s) and context as a vector of `size` features for `Modulation`.

    e = W (silu(W_t sinusoids(t) + W_s sinusoids(s) + W_c context + b)) + b', followed by silu.

    >>> Embedding(8, context=3)(torch.zeros(5), torch.zeros(5, 3)).shape
    torch.Size([5, 8])
    """

    def __init__(self, size: int, context: int = 0, *, two_time: bool = False, frequencies: int = 16) -> None:
        super().__init__()
        self.frequencies = frequencies
        self.time = nn.Linear(2 * frequencies, size)
        self.other_time = nn.Linear(2 * frequencies, size, bias=False) if two_time else None
        self.context = nn.Linear(context, size, bias=False) if context else None
        self.last = nn.Linear(size, size)

    def forward(self, t: Tensor, context: Tensor | None = None, s: Tensor | None = None) -> Tensor:
        h = self.time(sinusoids(t, self.frequencies))
        if self.other_time is not None and s is not None:
            h = h + self.other_time(sinusoids(s, self.frequencies))
        if self.context is not None and context is not None:
            h = h + self.context(context)
        return nn.functional.silu(self.last(nn.functional.silu(h)))


class Modulation(nn.Module):
    """From an embedding (B, size) to `count` vectors (B, 1, ..., 1, width) or, channels first, (B, width, 1, ..., 1).

    Small at the beginning, so that layers start unmodulated, but not zero: every weight has a gradient from the start.

    Source: FiLM: Visual Reasoning with a General Conditioning Layer, Perez et al. 2017, arXiv 1709.07871; Scalable
    Diffusion Models with Transformers, Peebles and Xie 2022, arXiv 2212.09748.
    """

    def __init__(self, size: int, width: int, count: int) -> None:
        super().__init__()
        self.width, self.count = width, count
        self.linear = nn.Linear(size, count * width)
        nn.init.normal_(self.linear.weight, std=0.1 / math.sqrt(size))
        nn.init.zeros_(self.linear.bias)

    def forward(self, embedding: Tensor, like: Tensor, *, channels_first: bool = False) -> tuple[Tensor, ...]:
        """Shaped to be combined with `like`, (B, ..., width) or (B, width, ...)."""
        ones = [1] * (like.dim() - 2)
        shape = (len(like), self.width, *ones) if channels_first else (len(like), *ones, self.width)
        return tuple(part.reshape(shape) for part in self.linear(embedding).chunk(self.count, 1))
