"""Two sources of a nanohertz gravitational-wave background, and a simulated free spectrum to tell them by."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.distributions import Uniform

from sciflow.arguments import integer
from sciflow.noise import normal_from_uniform
from sciflow.posterior.constants import constant, matched
from sciflow.posterior.likelihoods.base import Elementwise, positive, standing
from sciflow.posterior.operators import Function
from sciflow.posterior.prior import Prior
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness

__all__ = ["FreeSpectrum", "SplitNormal"]

_YEAR = 365.25 * 86400.0  # s
_HUBBLE = 1e5 / 3.0856775814913673e22  # 100 km/s/Mpc in 1/s


class SplitNormal(Elementwise):
    r"""Error bars of two lengths, y +up -low: with r = y - prediction,

        p(y | prediction) = sqrt(2 / pi) / (low + up) exp(-r^2 / 2 s^2),  s = low where r > 0, up where r < 0,

    since a datum that is too high is one whose error bar has to reach down. Normalised in y.

    Arguments:
        low, up: lengths > 0 of the error bars, in the unit of the data, that broadcast against them.

    >>> likelihood = SplitNormal(1.0, 2.0)
    >>> likelihood.log_prob(torch.zeros(1), torch.tensor([[-1.0], [1.0]]))
    tensor([-1.8244, -1.4494])
    """

    low: Tensor
    up: Tensor

    def __init__(self, low: Any, up: Any) -> None:
        super().__init__()
        for name, value in (("low", low), ("up", up)):
            constant(self, name, value)
            self.register_buffer(name, positive(self, name, value))

    def terms(self, y: Tensor, prediction: Tensor) -> Tensor:
        residual = y - prediction
        low, up = matched(self.low, residual), matched(self.up, residual)
        z = residual / torch.where(residual > 0, low, up)
        return 0.5 * math.log(2 / math.pi) - torch.log(low + up) - 0.5 * z.square()

    def uniforms(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape)

    def sample(self, prediction: Tensor, uniform: Tensor) -> Tensor:
        u = uniform.reshape(prediction.shape)
        total = self.low + self.up
        below, above = 0.5 * u * total / self.up, 0.5 + 0.5 * (u * total - self.up) / self.low
        noise = torch.where(u < self.up / total, self.up * normal_from_uniform(below.clamp(2**-54, 0.5)),
                            self.low * normal_from_uniform(above.clamp(0.5, 1 - 2**-54)))  # fmt: skip
        return prediction + noise.to(prediction.dtype)

    def check(self, y: Tensor) -> None:
        standing(self, "low", self.low, y)
        standing(self, "up", self.up, y)


class FreeSpectrum:
    r"""log10 of the timing residuals rho_i (s, root mean square) that a background leaves in bins of frequency f_i = i / T:

        rho_i^2 = h_c(f_i)^2 / (12 pi^2 f_i^3 T) = H^2 Omega(f_i) / (8 pi^4 f_i^5 T),  H = 100 km/s/Mpc, Omega in units of h^-2.

    `binaries`: supermassive black holes, h_c = A (f / year^-1)^((3 - gamma) / 2), gamma = 13/3 if gravitational waves alone
    drive them. Parameters: log10 A in [-18, -12], gamma in [0, 7].

    `transition`: bubbles of a phase transition in the early universe, a peak with the slope a = 3 of causality below it,
    Omega = Omega_* (a + b)^c / (b x^(-a/c) + a x^(b/c))^c, x = f / f_*. Parameters: log10 Omega_* in [-12, -4], log10 of f_*
    in Hz in [-10, -6], b in [1, 3], c in [1, 3].

    The data are simulated: binaries with the amplitude and slope given, error bars in dex that grow with frequency and are
    longer downwards, as those of measured free spectra are. Both are a `Problem` in float64 with uniform priors.

    Arguments:
        seed: of the noise.
        bins: number of frequencies.
        years: T.
        amplitude, gamma: the truth.

    Attributes: `frequencies` (Hz), `observation`, `low`, `up` (log10 of s; dex), `binaries`, `transition`.

    Source: The NANOGrav 15 yr data set: search for signals from new physics, Afzal et al. 2023, arXiv 2306.16219; fits to free
    spectra: Rapid refitting techniques for Bayesian spectral characterization of the gravitational wave background using
    pulsar timing arrays, Lamb, Taylor and van Haasteren 2023, arXiv 2303.15442.

    >>> spectrum = FreeSpectrum()
    >>> spectrum.binaries.names, [round(value, 2) for value in spectrum.observation[:3].tolist()]
    (['log10_A', 'gamma'], [-6.0, -7.06, -6.97])
    """

    def __init__(
        self, seed: int = 0, *, bins: int = 14, years: float = 15.0, amplitude: float = 2.4e-15, gamma: float = 13 / 3
    ) -> None:
        bins = integer("bins", bins, 2, 1000)
        self.span = years * _YEAR
        self.frequencies = torch.arange(1, bins + 1, dtype=torch.float64) / self.span
        share = torch.linspace(0, 1, bins, dtype=torch.float64)
        self.up = 0.12 + 0.25 * share
        self.low = 0.16 + 0.65 * share**1.5
        self.truth = torch.tensor([math.log10(amplitude), gamma], dtype=torch.float64)
        mean = self.power_law(self.truth.unsqueeze(0))
        self.likelihood = SplitNormal(self.low, self.up)
        uniform = Randomness(seed, "free spectrum").uniform(1, self.likelihood.uniforms((bins,)))
        self.observation = self.likelihood.sample(mean, uniform)[0]

    def power_law(self, x: Tensor) -> Tensor:
        """log10 rho (B, bins) of log10 A and gamma (B, 2)."""
        log_f = torch.log10(self.frequencies * _YEAR)
        constant = math.log10(_YEAR**3 / (12 * math.pi**2 * self.span))
        return x[:, :1] + 0.5 * (constant - x[:, 1:] * log_f)

    def peak(self, x: Tensor) -> Tensor:
        """log10 rho (B, bins) of log10 Omega_*, log10 f_*, b and c (B, 4)."""
        strength, position, b, c = x.unsqueeze(2).unbind(1)
        f, a = self.frequencies, 3.0
        log_x = math.log(10) * (torch.log10(f) - position)
        # c is 0 only where an operator is asked for its range
        c = c.clamp_min(1e-3)
        both = torch.logaddexp(torch.log(b) - a * log_x / c, math.log(a) + b * log_x / c)
        shape = c * (torch.log(a + b) - both) / math.log(10)
        constant = torch.log10(_HUBBLE**2 / (8 * math.pi**4 * f**5 * self.span))
        return 0.5 * (constant + strength + shape)

    @cached_property
    def binaries(self) -> Problem:
        return self._problem(self.power_law, {"log10_A": (-18.0, -12.0), "gamma": (0.0, 7.0)})

    @cached_property
    def transition(self) -> Problem:
        bounds = {"log10_Omega": (-12.0, -4.0), "log10_f": (-10.0, -6.0), "b": (1.0, 3.0), "c": (1.0, 3.0)}
        return self._problem(self.peak, bounds)

    def log_evidence(self, problem: Problem, nodes: tuple[int, ...]) -> float:
        """log Z by Gauss-Legendre quadrature over the prior's box with this many nodes for each parameter."""
        low, high = self._bounds(problem)
        rules = [tuple(map(torch.as_tensor, np.polynomial.legendre.leggauss(count))) for count in nodes]
        axes = [lo + 0.5 * (hi - lo) * (1 + x) for lo, hi, (x, _) in zip(low, high, rules, strict=True)]
        logs = [torch.log(0.5 * weight) for _, weight in rules]
        total = []
        rest = torch.cartesian_prod(*axes[1:]).reshape(-1, len(nodes) - 1)
        rest_log = torch.cartesian_prod(*logs[1:]).reshape(-1, len(nodes) - 1).sum(1)
        for value, log_w in zip(axes[0], logs[0], strict=True):
            rows = torch.cat([value.expand(len(rest), 1), rest], 1)
            terms = [problem.log_likelihood(part) for part in rows.split(2**16)]
            total.append(log_w + (torch.cat(terms) + rest_log).logsumexp(0))
        return float(torch.stack(total).logsumexp(0))

    def _problem(self, function: Callable[[Tensor], Tensor], bounds: dict[str, tuple[float, float]]) -> Problem:
        parts = {name: Uniform(*torch.tensor(ends, dtype=torch.float64)) for name, ends in bounds.items()}
        operator = Function(function, len(bounds), len(self.frequencies))
        return Problem(Prior.product(parts), self.observation, self.likelihood, operator)

    @staticmethod
    def _bounds(problem: Problem) -> tuple[list[float], list[float]]:
        parts = [part.distribution for part in problem.prior.distribution.parts.values()]
        return [float(part.low) for part in parts], [float(part.high) for part in parts]

    def __repr__(self) -> str:
        return f"FreeSpectrum({len(self.frequencies)} bins of 1 / {self.span / _YEAR:g} yr)"
