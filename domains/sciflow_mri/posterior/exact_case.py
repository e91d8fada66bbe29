"""A posterior that is known in closed form, measured by the same operator: does the sampler find it?"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.certificate import Test
from sciflow.networks.time_network import TimeNetwork
from sciflow.posterior import Problem
from sciflow.posterior.likelihoods import Gaussian
from sciflow.posterior.problems.mixture import GaussianMixtureVelocity
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import AnnealedLangevin
from sciflow.transport import TransportFlow
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.physics.sense import Sense

__all__ = ["ExactCase", "exact_case_tests"]

_SIGMAS = 5.0


class _ImageVelocity(TimeNetwork):
    """The exact velocity of N(m, C) over images, from that over vectors."""

    def __init__(self, mean: Tensor, covariance: Tensor, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.flat = GaussianMixtureVelocity(mean[None], covariance[None])
        self.event_shape, self.context, self.channels = torch.Size(shape), 0, 1

    def forward(
        self, x: Tensor, t: Tensor, context: Tensor | None = None, mask: Tensor | None = None, s: Tensor | None = None
    ) -> Tensor:
        found: Tensor = self.flat(x.flatten(1), t)
        return found.reshape(len(x), 1, *self.event_shape)


class ExactCase:
    r"""Images x ~ N(m, C) of size x size points, seen through coils and a mask of lines, in double precision:

        y = A x + e,  e ~ N(0, 1) per real and imaginary part;   S = (C^-1 + A'A)^-1,   mu = S (C^-1 m + A'y).

    C has deviation `data_scale` and correlations exp(-r^2 / 2 l^2), l = 1.5 points, beside a tenth of white variance.

    Attributes: `problem` (with a `TransportFlow` of exact velocity), `operator`, `truth`; `closed_form(blur)` gives mean and
    covariance for the prior N(m, C + blur^2).

    >>> case = ExactCase(size=4, coils=2)
    >>> mean, covariance = case.closed_form()
    >>> mean.shape, bool(torch.linalg.eigvalsh(covariance).min() > 0)
    (torch.Size([32]), True)
    """

    def __init__(
        self, size: int = 8, coils: int = 3, *, acceleration: float = 2.0, sigma: float = 0.1, data_scale: float = 0.36,
        seed: int = 0,
    ) -> None:  # fmt: skip
        size, coils = integer("size", size, 4, 32), integer("coils", coils, 1, 64)
        rng = np.random.default_rng((seed, 23))
        self.data_scale = data_scale
        place = torch.cartesian_prod(*[torch.arange(size, dtype=torch.float64)] * 2)
        near = torch.exp(-torch.cdist(place, place).square() / (2 * 1.5**2))
        one = data_scale**2 * (0.9 * near + 0.1 * torch.eye(size**2, dtype=torch.float64))
        self.covariance = torch.block_diag(one, one)
        centre = torch.exp(-(place - (size - 1) / 2).square().sum(1) / (size / 2) ** 2)
        self.mean = torch.cat([centre, 0.3 * centre])
        maps = torch.from_numpy(coil_maps(coils, size, rng)).to(torch.complex128)
        mask = line_mask(size, acceleration, max(2, size // 4), seed=seed)
        self.operator = Sense(maps, mask, torch.full((coils, size), sigma**2, dtype=torch.float64))
        factor = torch.linalg.cholesky(self.covariance)
        self.truth = (self.mean + factor @ torch.from_numpy(rng.normal(size=2 * size**2))).reshape(2, size, size)
        clean = self.operator(self.truth[None])[0]
        noise = torch.from_numpy(rng.normal(size=(2, *clean.shape)))
        self.y = clean + torch.complex(noise[0], noise[1])
        shape = (2, size, size)
        flow = TransportFlow(shape, network=_ImageVelocity(self.mean, self.covariance, shape)).to(torch.float64)
        self.problem = Problem(flow, self.y, Gaussian(1.0), self.operator)

    def closed_form(self, blur: float = 0.0) -> tuple[Tensor, Tensor]:
        """mu (D,) and S (D, D), D = 2 size^2."""
        d = len(self.mean)
        eye = torch.eye(d, dtype=torch.float64)
        rows = torch.view_as_real(self.operator(eye.reshape(d, *self.truth.shape))).flatten(1)  # A' as rows
        prior = torch.linalg.inv(self.covariance + blur**2 * eye)
        covariance = torch.linalg.inv(prior + rows @ rows.T)
        data = torch.view_as_real(self.y).flatten()
        return covariance @ (prior @ self.mean + rows @ data), 0.5 * (covariance + covariance.T)


def exact_case_tests(
    sampler: Any = None, *, draws: int = 2000, size: int = 8, coils: int = 3, seed: int = 0, **settings: Any
) -> list[Test]:
    r"""Mean and covariance of a sampler's draws on an `ExactCase` against the closed form, as tests for a certificate.

    Draws are whitened, w = S^(-1/2) (x - mu), with the closed form of the prior that the sampler says it uses (blurred by the
    noise of its last level). Then, if it is exact,

        mean:        n |mean w|^2 is chi-squared with D degrees; demanded: |mean w| / sqrt(D) <= sqrt((1 + 5 sqrt(2 / D)) / n),
        variances:   |w|^2 / D, mean over draws, is 1 +- sqrt(2 / (D n)),
        covariance:  the mean square of entries of cov(w) off the diagonal is 1 / n,

    each to five standard errors and, beside them, `bias` = 2 % (mean: 5 % of a deviation) for the discretisation. What the
    blur changes is reported: the largest ratio of deviations with and without it.

    Arguments:
        sampler: `AnnealedLangevin` with the settings in question; by default with its own.
        settings: of `ExactCase`.
    """
    case = ExactCase(size, coils, seed=seed, **settings)
    if sampler is None:
        sampler = AnnealedLangevin(case.data_scale, states=0)
    draws = integer("draws", draws, 100, 2**31)
    found = _drawn(sampler, case, draws, seed)
    blur = float(sampler.levels[-1][0] * sampler.data_scale) if isinstance(sampler, AnnealedLangevin) else 0.0
    mean, covariance = case.closed_form(blur)
    factor = torch.linalg.cholesky(covariance)
    w = torch.linalg.solve_triangular(factor, (found - mean).T, upper=False).T
    d, n = len(mean), draws
    spread = w - w.mean(0)
    scatter = spread.T @ spread / (n - 1)
    off = float((scatter.square().sum() - scatter.diagonal().square().sum()) / (d * (d - 1)))
    sharp = case.closed_form()[1].diagonal().sqrt()
    text = f"{n} draws of {d} numbers, {coils} coils, prior N(m, C) with exact velocity"
    few = math.sqrt((1 + _SIGMAS * math.sqrt(4 / (d * (d - 1)))) / n + 0.02**2)
    return [
        Test("exact case: mean", float(w.mean(0).square().mean().sqrt()),
             math.sqrt((1 + _SIGMAS * math.sqrt(2 / d)) / n + 0.05**2), "<=",
             description=f"distance to the closed form in its deviations, root mean square; {text}"),
        Test("exact case: variance", float(scatter.diagonal().mean()),
             (0.98 - _SIGMAS * math.sqrt(2 / (d * n)), 1.02 + _SIGMAS * math.sqrt(2 / (d * n))), "inside",
             description=f"variances over those of the closed form, mean over whitened directions; {text}"),
        Test("exact case: covariance", math.sqrt(off), few, "<=",
             description=f"entries beside the diagonal of the whitened covariance, root mean square; {text}"),
        Test("exact case: blur of the last level", float((covariance.diagonal().sqrt() / sharp).max()),
             description="largest ratio of standard deviations with and without it; reported"),
    ]  # fmt: skip


def _drawn(sampler: Any, case: ExactCase, draws: int, seed: int) -> Tensor:
    randomness = Randomness(seed, "exact case", dtype=torch.float64)
    with torch.no_grad():
        found = sampler.run(case.problem, draws, randomness, progress=False)
    rows: Tensor = found.x.reshape(draws, -1).double()
    return rows
