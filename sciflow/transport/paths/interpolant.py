"""Stochastic interpolants."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable

import torch
from torch import Tensor

from sciflow.arguments import real
from sciflow.errors import UserError
from sciflow.transport.paths.base import AffinePath
from sciflow.transport.paths.noisy import NoisyPath

__all__ = ["StochasticInterpolant"]

_GAMMAS: dict[str, Callable[[Tensor], Tensor]] = {
    "brownian": lambda t: torch.sqrt((2 * t * (1 - t)).clamp_min(0)),
    "quadratic": lambda t: t * (1 - t),
    "sine": lambda t: torch.sin(math.pi * t) ** 2,
}


class StochasticInterpolant(NoisyPath):
    r"""x_t = I_t(x_0, x_1) + gamma(t) eps: an affine interpolant smoothed in between.

    Arguments:
        mean: I_t; the straight line by default.
        gamma: "brownian" sqrt(2 t (1 - t)), "quadratic" t (1 - t), or "sine" sin^2(pi t); a subclass may write its own.
        scale: factor of gamma.

    Source: Stochastic Interpolants: A Unifying Framework for Flows and Diffusions, Albergo, Boffi and Vanden-Eijnden 2023,
    arXiv 2303.08797.
    """

    def __init__(
        self, mean: AffinePath | None = None, *, gamma: str = "brownian", scale: float = 1.0, floor: float = 1e-4
    ) -> None:
        super().__init__(mean, floor=floor)
        if gamma not in _GAMMAS:
            raise UserError(f"unknown gamma {gamma!r}; known are {', '.join(_GAMMAS)}")
        self.kind, self.scale = gamma, real("scale", scale, sys.float_info.min)

    def gamma(self, t: Tensor) -> Tensor:
        return self.scale * _GAMMAS[self.kind](t)
