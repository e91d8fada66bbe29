"""The static Schrödinger bridge within the batch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.sinkhorn import Sinkhorn

__all__ = ["SchroedingerCoupling"]


class SchroedingerCoupling(Sinkhorn):
    r"""The entropic plan of the cost |x0 - x1|^2 with regularisation 2 sigma^2: end points of Brownian motion sigma W.

    The bridge between marginals that is closest to sigma W (in relative entropy) draws its end points from the plan
    P = exp(f + g) exp(-|x0 - x1|^2 / (2 sigma^2)), and joins them by Brownian bridges: the path must have the
    same sigma.

    Arguments:
        sigma: standard deviation of the reference process after unit time, that of the noisy path.
        iterations, tolerance, block: see `Sinkhorn`. A sigma much smaller than the distances needs many iterations.

    Source: Simulation-Free Schrödinger Bridges via Score and Flow Matching, Tong et al. 2023, arXiv 2307.03672.

    >>> SchroedingerCoupling(0.5)
    SchroedingerCoupling(sigma=0.5, iterations=500, tolerance=0.01, block=None)
    """

    def __init__(self, sigma: float, *, iterations: int = 500, tolerance: float = 0.01, block: int | None = None) -> None:
        if not 0 < sigma < math.inf:
            raise UserError(f"sigma={sigma}: a positive number is needed, that of the noisy path")
        super().__init__(iterations=iterations, tolerance=tolerance, block=block)
        self.sigma = sigma

    def epsilon(self, cost: Tensor) -> Tensor:
        assert self.sigma is not None
        return torch.as_tensor(2 * self.sigma**2, dtype=cost.dtype, device=cost.device)
