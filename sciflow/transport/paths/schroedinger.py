"""The Brownian bridge between coupled endpoints."""

from __future__ import annotations

import sys

import torch
from torch import Tensor

from sciflow.arguments import real
from sciflow.transport.paths.noisy import NoisyPath

__all__ = ["SchroedingerBridge"]


class SchroedingerBridge(NoisyPath):
    r"""x_t = t x_1 + (1 - t) x_0 + sigma sqrt(t (1 - t)) eps, with the conditional velocity

        u_t = x_1 - x_0 + (1 - 2 t) / (2 t (1 - t)) (x_t - t x_1 - (1 - t) x_0).

    Endpoints coupled by entropic optimal transport with regularisation 2 sigma^2 make it the Schroedinger bridge.
    The mean square of u_t diverges like 1 / t at both ends: times are clamped to [floor, 1 - floor] there.

    Arguments:
        sigma: of the Brownian motion, in units of the data.

    Source: Simulation-free Schroedinger bridges via score and flow matching, Tong et al. 2023, arXiv 2307.03672.
    """

    def __init__(self, sigma: float = 1.0, *, floor: float = 1e-4) -> None:
        super().__init__(floor=floor)
        self.sigma = real("sigma", sigma, sys.float_info.min)

    def gamma(self, t: Tensor) -> Tensor:
        return self.sigma * torch.sqrt((t * (1 - t)).clamp_min(0))
