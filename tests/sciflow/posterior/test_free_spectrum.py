"""Free spectra of a gravitational-wave background: the physics, the likelihood, and evidences against quadrature."""

from __future__ import annotations

import math

import pytest
import torch

from sciflow.errors import UserError
from sciflow.posterior.evidence import HarmonicMean, agreement, bayes_factor
from sciflow.posterior.problems import FreeSpectrum, SplitNormal
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import Importance, TemperedSMC

SPECTRUM = FreeSpectrum()
YEAR = 365.25 * 86400.0


def test_the_residuals_of_binaries() -> None:
    """rho^2 = h_c^2 / (12 pi^2 f^3 T) written out for the third bin; 2.4e-15 leaves under a microsecond in the first."""
    log_a, gamma = SPECTRUM.truth.tolist()
    f = 3 / (15 * YEAR)
    strain = 10**log_a * (f * YEAR) ** ((3 - gamma) / 2)
    rho = math.sqrt(strain**2 / (12 * math.pi**2 * f**3 * 15 * YEAR))
    mean = SPECTRUM.power_law(SPECTRUM.truth.unsqueeze(0))[0]
    assert abs(float(mean[2]) - math.log10(rho)) < 1e-12
    assert 3e-7 < 10 ** float(mean[0]) < 1e-6


def test_the_peak_and_the_power_law_are_the_same_background() -> None:
    """Far above its peak Omega ~ f^-b, so h_c^2 ~ f^(-b - 2): a power law with gamma = 5 + b; far below it, Omega ~ f^3 and
    gamma = 2. The amplitudes obey Omega = 2 pi^2 f^2 h_c^2 / 3 H^2."""
    hubble = 1e5 / 3.0856775814913673e22
    for position, gamma, x_power in ((-13.0, 6.5, -1.5), (-3.0, 2.0, 3.0)):
        b, c = 1.5, 2.0
        rho = SPECTRUM.peak(torch.tensor([[-8.0, position, b, c]], dtype=torch.float64))
        f = 1 / YEAR
        tail = ((3 + b) / (b if x_power > 0 else 3.0)) ** c * (f / 10**position) ** x_power
        strain = math.sqrt(3 * hubble**2 * 10**-8.0 * tail / (2 * math.pi**2 * f**2))
        same = SPECTRUM.power_law(torch.tensor([[math.log10(strain), gamma]], dtype=torch.float64))
        assert (rho - same).abs().max() < 1e-3


def test_error_bars_of_two_lengths() -> None:
    """Normalised in the data; draws have its mean and mass above (10 standard errors of 10^5 draws would be 0.03)."""
    likelihood = SplitNormal(0.5, 2.0)
    y = torch.linspace(-30, 30, 600_001, dtype=torch.float64).unsqueeze(1)
    density = torch.stack([likelihood.log_prob(row, torch.zeros(1, 1, dtype=torch.float64))[0] for row in y[::100]]).exp()
    assert abs(float(density.sum()) * 0.01 - 1) < 1e-3
    draws = likelihood.sample(torch.zeros(100_000, 1, dtype=torch.float64), Randomness(0, "test").uniform(100_000, 1))
    assert abs(float(draws.mean()) - math.sqrt(2 / math.pi) * (0.5 - 2.0)) < 0.03
    assert abs(float((draws > 0).double().mean()) - 0.2) < 0.01
    with pytest.raises(UserError, match="up has values <= 0"):
        SplitNormal(1.0, 0.0)


def test_the_quadrature_has_converged() -> None:
    a, b = (SPECTRUM.log_evidence(SPECTRUM.binaries, (n, n)) for n in (150, 200))
    c, d = (SPECTRUM.log_evidence(SPECTRUM.transition, nodes) for nodes in ((80, 80, 6, 6), (120, 120, 8, 8)))
    assert abs(a - b) < 1e-3 and abs(c - d) < 1e-3


def test_three_evidences_agree_with_quadrature_and_with_each_other() -> None:
    """Each of four evidences within 4 stated errors of the quadrature, the Bayes factors within 4: fewer than 1 in 500 seeds
    fail if errors are right (errors of 8 replicates are themselves uncertain)."""
    truth = (SPECTRUM.log_evidence(SPECTRUM.binaries, (200, 200)), SPECTRUM.log_evidence(SPECTRUM.transition, (120, 120, 8, 8)))
    found = []
    for problem, exact in zip((SPECTRUM.binaries, SPECTRUM.transition), truth, strict=True):
        draws = TemperedSMC()(problem, 200, seed=2, progress=False)
        evidences = [
            draws.evidence, HarmonicMean(epochs=15)(draws, problem).evidence,
            Importance(coverage=0)(problem, 60_000, seed=2).evidence,
        ]  # fmt: skip
        for evidence in evidences:
            assert abs(evidence.log_value - exact) < 4 * evidence.error < 1, evidence
        assert all(test.value < 5 for test in agreement(evidences))
        found.append(evidences)
    for first, second in zip(*found, strict=True):
        factor = bayes_factor(first, second)
        assert abs(factor.log_value - (truth[0] - truth[1])) < 4 * factor.error and factor.test.passed
