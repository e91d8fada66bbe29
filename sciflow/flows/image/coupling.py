"""Couplings over images: some channels are mapped given the others and feature maps."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows.elementwise import Elementwise
from sciflow.flows.image.layer import ImageLayer

__all__ = ["ConvolutionalNetwork", "ImageCoupling"]


class ConvolutionalNetwork(nn.Module):
    """Three convolutions, the middle one over channels alone; the last one starts small, so that a fresh flow is near the
    identity.

    >>> ConvolutionalNetwork(3, 4, hidden=8)(torch.zeros(2, 3, 5, 5)).shape
    torch.Size([2, 4, 5, 5])
    """

    def __init__(self, inputs: int, outputs: int, hidden: int = 48, *, kernel: int = 3, scale: float = 1e-2) -> None:
        super().__init__()
        if kernel % 2 == 0:
            raise UserError(f"a kernel of {kernel} pixels has no centre: give an odd number")
        self.first = nn.Conv2d(inputs, hidden, kernel, padding=kernel // 2)
        self.middle = nn.Conv2d(hidden, hidden, 1)
        self.last = nn.Conv2d(hidden, outputs, kernel, padding=kernel // 2)
        nn.init.kaiming_uniform_(self.middle.weight, nonlinearity="relu")
        with torch.no_grad():
            self.last.weight.mul_(scale * math.sqrt(3))
            nn.init.zeros_(self.last.bias)  # type: ignore[arg-type]

    def forward(self, inputs: Tensor) -> Tensor:
        h = torch.relu_(self.first(inputs.to(self.first.weight.dtype)))
        return self.last(torch.relu_(self.middle(h)))


class ImageCoupling(ImageLayer):
    r"""y_A = x_A, y_B = f(x_B; network(x_A, features)) with an elementwise f: log |det| = sum log |f'|.

    A are the first channels, B the others; mixing layers in between change who is who. The network is evaluated once in
    either direction.

    Arguments:
        channels: of x; at least 2.
        map_: the elementwise bijection, affine or rational-quadratic, see `sciflow.flows.elementwise`.
        features: number of feature maps given.

    Sources: Density estimation using Real NVP, Dinh et al. 2016, arXiv 1605.08803; Neural Spline Flows, Durkan et al. 2019,
    arXiv 1906.04032.

    >>> from sciflow.flows.elementwise import Affine
    >>> ImageCoupling(4, Affine(1.5), hidden=8)(torch.zeros(2, 4, 3, 3))[0].shape
    torch.Size([2, 4, 3, 3])
    """

    def __init__(self, channels: int, map_: Elementwise, features: int = 0, *, hidden: int = 48, kernel: int = 3) -> None:
        super().__init__()
        if channels < 2:
            raise UserError(f"a coupling needs at least 2 channels, got {channels}: nothing would be left to look at")
        self.channels, self.kept, self.features, self.map = channels, channels // 2, features, map_
        changed = channels - self.kept
        self.network = ConvolutionalNetwork(self.kept + features, map_.parameters * changed, hidden, kernel=kernel)

    def extra_repr(self) -> str:
        return f"{self.channels - self.kept} given {self.kept} channels and {self.features} feature maps"

    def forward(self, x: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(x, features, inverse=False)

    def inverse(self, z: Tensor, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self._map(z, features, inverse=True)

    def _map(self, x: Tensor, features: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        given = 0 if features is None else features.shape[1]
        if given != self.features:
            raise ValueError(f"the coupling takes {self.features} feature maps, got {given}")
        kept, changed = x[:, : self.kept], x[:, self.kept :]
        raw = self.network(kept if features is None else torch.cat((kept, features.to(x.dtype)), 1)).to(x.dtype)
        parameters = raw.unflatten(1, (self.map.parameters, -1)).transpose(0, 1)
        y, ladj = self.map(changed, parameters, inverse=inverse)
        return torch.cat((kept, y), 1), ladj.flatten(1).sum(1)
