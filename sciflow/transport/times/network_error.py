"""The weight under which a preconditioned network learns all times alike."""

from __future__ import annotations

import math

from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.times.weightings import Weighting

__all__ = ["NetworkError"]


class NetworkError(Weighting):
    r"""(d^2 a^2 + s^2) / (d w)^2: the loss of the network F inside `Preconditioned`, whose targets have variance 1 at every time.

    The plain loss of the velocity has d^2 times as much weight where noise prevails, a = 0, as at the data: at d = 0.1 all that
    only the condition can tell is a hundredth of it.

    Arguments:
        data_scale: d, that of the network.

    Source: Elucidating the Design Space of Diffusion-Based Generative Models, Karras et al. 2022, arXiv 2206.00364.

    >>> import torch
    >>> from sciflow.transport.paths import Linear
    >>> NetworkError(0.5)(torch.tensor([0.0, 1.0]), Linear())
    tensor([4., 1.])
    """

    def __init__(self, data_scale: float) -> None:
        if not 0 < data_scale < math.inf:
            raise UserError(f"data_scale={data_scale}: give the standard deviation of the data, > 0")
        self.data_scale = data_scale

    def formula(self, a: Tensor, s: Tensor, w: Tensor) -> Tensor:
        d = self.data_scale
        return ((d * a).square() + s.square()) / (d * w).square()
