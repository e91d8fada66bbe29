"""Scale and shift of each channel, found from the first batch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sciflow.flows.image.layer import ImageLayer

__all__ = ["ActNorm"]


class ActNorm(ImageLayer):
    r"""y_c = exp(s_c) x_c + b_c, log |det| = H W sum_c s_c.

    The first batch that a training sees sets s and b so that each channel leaves with mean 0 and variance 1; from then on
    they are learned. Whether that has happened is saved with the weights. In eval mode nothing is set.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018, arXiv 1807.03039.

    >>> norm = ActNorm(1)
    >>> y, _ = norm(5 + 3 * torch.randn(2, 1, 8, 8))
    >>> bool(y.mean().abs() < 1e-5), bool(norm.initialised)
    (True, True)
    """

    initialised: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.zeros(channels, 1, 1))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))
        self._ready = False  # what the buffer says, without waiting for a device at each step

    def extra_repr(self) -> str:
        return f"{len(self.bias)}{'' if self._ready else ', not initialised'}"

    @torch.no_grad()
    def initialise(self, x: Tensor) -> None:
        """Set scale and shift from images x (B, C, H, W), whatever was there before."""
        x = x.detach().to(self.bias.dtype)
        deviation = x.std((0, 2, 3), correction=0).clamp_min(1e-6)
        self.log_scale.copy_(-deviation.log().view(-1, 1, 1))
        self.bias.copy_((-x.mean((0, 2, 3)) / deviation).view(-1, 1, 1))
        self.initialised.fill_(True)
        self._ready = True

    def forget(self) -> None:
        """Take the next batch in training mode as the first."""
        self.initialised.fill_(False)
        self._ready = False

    def forward(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        if self.training and not self._ready and len(x):
            self.initialise(x)
        log_scale = self.log_scale.to(x.dtype)
        return torch.addcmul(self.bias.to(x.dtype), x, log_scale.exp()), self._ladj(log_scale, x)

    def inverse(self, z: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        log_scale = self.log_scale.to(z.dtype)
        return (z - self.bias.to(z.dtype)) * torch.exp(-log_scale), -self._ladj(log_scale, z)

    @staticmethod
    def _ladj(log_scale: Tensor, x: Tensor) -> Tensor:
        return (log_scale.sum() * (x.shape[2] * x.shape[3])).expand(len(x))

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *arguments: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *arguments)
        if not self.initialised.is_meta:
            self._ready = bool(self.initialised)
