"""1x1 convolutions that mix the channels of an image."""

from __future__ import annotations

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.flows.image.layer import ImageLayer
from sciflow.flows.mixing import LUMixing, OrthogonalMixing

__all__ = ["ChannelMixing", "ChannelMixingKind"]

ChannelMixingKind: TypeAlias = Literal["fixed", "orthogonal", "lu"]


class ChannelMixing(ImageLayer):
    r"""y(pixel) = M Q x(pixel) with a fixed random rotation Q and M the identity ("fixed"), a learned rotation
    ("orthogonal") or a learned L U ("lu", log |det| = H W sum_c log U_cc).

    Q is the orthogonal factor of a saved matrix, computed again in the dtype of x: weights that are stored in half precision
    still give an exact rotation.

    Arguments:
        seed: of Q.

    Source: Glow: Generative Flow with Invertible 1x1 Convolutions, Kingma and Dhariwal 2018, arXiv 1807.03039.

    >>> ChannelMixing(3)(torch.zeros(2, 3, 4, 4))[1]
    tensor([0., 0.])
    """

    seed_matrix: Tensor

    def __init__(self, channels: int, kind: str = "fixed", *, seed: int = 0) -> None:
        super().__init__()
        if kind not in ("fixed", "orthogonal", "lu"):
            raise UserError(f"mixing is {kind!r}; it must be 'fixed', 'orthogonal' or 'lu'")
        self.channels, self.kind = channels, kind
        learned = {"orthogonal": OrthogonalMixing, "lu": LUMixing}.get(kind)
        self.learned = None if learned is None else learned(channels)
        generator = torch.Generator().manual_seed(seed)
        matrix = torch.randn(channels, channels, generator=generator, dtype=torch.float64, device="cpu")
        self.register_buffer("seed_matrix", torch.linalg.qr(matrix).Q.to(torch.get_default_dtype()))

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.kind}"

    def _rotation(self, x: Tensor) -> Tensor:
        return torch.linalg.qr(self.seed_matrix.to(x.dtype)).Q

    def forward(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matrix, ladj = self._rotation(x), x.new_zeros(1)
        if self.learned is not None:
            matrix, ladj = self.learned(matrix, None, None)
        return _applied(matrix, x), (ladj[0] * (x.shape[2] * x.shape[3])).expand(len(x))

    def inverse(self, z: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        matrix, ladj = self._rotation(z).T, z.new_zeros(1)
        if self.learned is not None:
            identity = torch.eye(self.channels, dtype=z.dtype, device=z.device)
            back, ladj = self.learned.inverse(identity, None, None)
            matrix = matrix @ back
        return _applied(matrix, z), (ladj[0] * (z.shape[2] * z.shape[3])).expand(len(z))


def _applied(matrix: Tensor, x: Tensor) -> Tensor:
    if x.is_meta:
        return (matrix @ x.flatten(2)).view(x.shape)
    with torch.autocast(x.device.type, enabled=False):  # rounding here would add up in the log-density
        return (matrix @ x.flatten(2)).view(x.shape)
