"""Noise that spreads discrete values over their bins: uniform, truncated normal, variational."""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.networks.mlp import activation_of
from sciflow.noise import normal_from_uniform
from sciflow.recorded import Recorded
from sciflow.shapes import shape_of

__all__ = ["Dequantisation", "TruncatedNormal", "UniformNoise", "Variational"]


class Dequantisation(nn.Module, Recorded, ABC):
    """q(u | x): where in its bin, u in (0, 1), a discrete value is put.

    `learned` noise depends on the event and is trained with the likelihood of the flow.
    """

    learned: bool = False

    @abstractmethod
    def forward(self, uniform: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        """u and log q(u | x), both (B, *event), the sum of which over features is the log-density.

        `uniform` (B, *event) is in (0, 1), `x` (B, *event) the discrete values scaled to (-1, 1), context (B, C) or None.
        """


class UniformNoise(Dequantisation):
    """q = 1.

    Source: A note on the evaluation of generative models, Theis et al. 2015, arXiv 1511.01844.
    """

    def forward(self, uniform: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        return uniform, torch.zeros_like(uniform)


class TruncatedNormal(Dequantisation):
    r"""u normal about the middle of the bin with standard deviation `scale` bins, cut at its walls.

    q(u) = phi((u - 1/2) / scale) / (scale (2 Phi(1 / (2 scale)) - 1)): smooth densities are met better than by uniform noise,
    without a training.

    Source: Improved Techniques for Maximum Likelihood Estimation for Diffusion ODEs, Zheng et al. 2023, arXiv 2305.03935.
    """

    def __init__(self, scale: float = 0.25) -> None:
        super().__init__()
        if not scale > 0:
            raise UserError(f"scale={scale}: give the width of the noise in bins, such as 0.25")
        self.scale = scale

    def forward(self, uniform: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        wall = 0.5 / self.scale
        low, inside = 0.5 * math.erfc(wall / math.sqrt(2)), math.erf(wall / math.sqrt(2))
        level = (low + inside * uniform.double()).contiguous()
        z = normal_from_uniform(level).clamp(-wall, wall)
        log_q = -0.5 * z.square() - math.log(self.scale * inside * math.sqrt(2 * math.pi))
        return (0.5 + self.scale * z).to(uniform.dtype), log_q.to(uniform.dtype)

    def extra_repr(self) -> str:
        return f"scale={self.scale}"


class Variational(Dequantisation):
    r"""u = sigmoid(m(x) + e^{s(x)} z), z normal, with m and s from a network of the whole event and the context.

    The bound on log P(x) is tight where q(u | x) is the flow's own density within the bin. Give `network` another module
    (B, *event) -> (B, 2, *event) for images; it must be `Recorded` to be saved.

    Source: Flow++, Ho et al. 2019, arXiv 1902.00275, with one scale per feature in the place of a conditional flow.
    """

    learned = True

    def __init__(
        self,
        event_shape: int | tuple[int, ...],
        context: int = 0,
        *,
        hidden: Sequence[int] = (128,),
        activation: str = "silu",
        network: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.event_shape = shape_of(event_shape)
        self.context = context
        size = math.prod(self.event_shape)
        sizes = [size + context, *hidden, 2 * size]
        self.layers: Any = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        self.activate = activation_of(activation)
        self.network = network
        if network is not None:
            self.layers = None

    def forward(self, uniform: Tensor, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        location, log_scale = self._location_and_scale(x, context)
        z = normal_from_uniform(uniform.double().contiguous()).to(uniform.dtype)
        # the least scale is 1e-2: q stays a density of the bin, not a point
        log_scale = log_scale.clamp(-4.6, 3.0)
        y = location + log_scale.exp() * z
        log_q = -0.5 * (z.square() + math.log(2 * math.pi)) - log_scale
        # log du/dy of the sigmoid
        log_q = log_q + nn.functional.softplus(y) + nn.functional.softplus(-y)
        return torch.sigmoid(y), log_q

    def _location_and_scale(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        if self.network is not None:
            return self.network(x).to(x.dtype).unbind(1)
        h = x.flatten(1) if context is None else torch.cat((x.flatten(1), context.to(x.dtype)), 1)
        h = h.to(self.layers[0].weight.dtype)
        for layer in self.layers[:-1]:
            h = self.activate(layer(h))
        location, log_scale = self.layers[-1](h).to(x.dtype).reshape(-1, 2, *self.event_shape).unbind(1)
        # sigmoid(1.7 z) is nearly uniform: what training starts from
        return location, log_scale + math.log(1.7)
