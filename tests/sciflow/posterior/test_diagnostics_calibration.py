"""Calibration tests against posteriors that are known: exact ones are kept, five kinds of wrong ones are seen."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from sciflow.errors import UserError
from sciflow.posterior.diagnostics import (
    Ranks,
    battery,
    battery_ranks,
    clopper_pearson,
    expected_coverage,
    fractional_rank,
    holm,
    kolmogorov_smirnov,
    sbc,
    sbc_quantities,
    tarp,
)
from sciflow.posterior.recalibration import Recalibration
from sciflow.posterior.result import Posterior

MATRIX = torch.tensor([[1.0, 0.8], [0.0, 1.0]], dtype=torch.float64)
SIGMA = 0.7


def linear(n: int, draws: int, seed: int, kind: str = "exact"):
    """theta ~ N(0, 1), y = A theta + sigma e, and draws of the exact posterior or of a wrong one."""
    generator = torch.Generator().manual_seed(seed)
    theta = torch.randn(n, 2, generator=generator, dtype=torch.float64)
    y = theta @ MATRIX.T + SIGMA * torch.randn(n, 2, generator=generator, dtype=torch.float64)
    covariance = torch.linalg.inv(torch.eye(2, dtype=torch.float64) + MATRIX.T @ MATRIX / SIGMA**2)
    mean = (y @ MATRIX @ covariance / SIGMA**2).unsqueeze(1)
    noise = torch.randn(n, draws, 2, generator=generator, dtype=torch.float64)
    sd, root = covariance.diagonal().sqrt(), torch.linalg.cholesky(covariance)
    found = {
        "exact": mean + noise @ root.T,
        "prior": noise,
        "correlation": mean + (noise @ root.T) * torch.tensor([1.0, -1.0], dtype=torch.float64),
        "bias": mean + noise @ root.T + 0.3 * sd,
        "width": mean + 0.8 * noise @ root.T,
    }
    return theta, found[kind], y


def log_likelihood(theta: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return -0.5 * (y - theta @ MATRIX.T).square().sum(-1) / SIGMA**2


def test_fractional_ranks_are_uniform_with_ties_and_few_draws() -> None:
    """Draws of a coin, three of them: 16 ranks would not be uniform without the jitter. KS at 1e-3 (the false-alarm rate)."""
    generator = torch.Generator().manual_seed(0)
    coins = torch.randint(0, 2, (20_000, 4), generator=generator)
    rank = fractional_rank(coins[:, 0], coins[:, 1:], torch.rand(20_000, generator=generator, dtype=torch.float64))
    assert stats.kstest(rank.numpy(), "uniform").pvalue > 1e-3
    infinite = torch.tensor([-torch.inf])
    assert 0 < float(fractional_rank(infinite, infinite.expand(1, 5), torch.tensor([0.5]))) < 1


def test_kolmogorov_smirnov_is_scipys() -> None:
    values = torch.rand(3, 57, generator=torch.Generator().manual_seed(1), dtype=torch.float64) ** 1.2
    wanted = [stats.kstest(row, "uniform", method="exact").pvalue for row in values.numpy()]
    np.testing.assert_allclose(kolmogorov_smirnov(values), wanted, rtol=1e-8)


def test_holm_and_clopper_pearson_are_the_published_ones() -> None:
    np.testing.assert_allclose(holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    assert (holm(np.array([[0.01, 0.9], [0.5, 0.001]])) == [[0.02, 0.9], [0.5, 0.002]]).all()
    wanted = stats.binomtest(7, 20).proportion_ci(0.95, method="exact")
    assert clopper_pearson(7, 20) == pytest.approx((wanted.low, wanted.high))
    assert clopper_pearson(20, 20)[1] == 1.0


@pytest.mark.parametrize("likelihood", [True, False])
@pytest.mark.parametrize("kind", ["exact", "prior", "correlation", "bias", "width"])
def test_battery_keeps_the_exact_posterior_and_rejects_each_wrong_one(kind: str, likelihood: bool) -> None:
    """One seeded run each; the exact one fails with probability 1 % per seed, the wrong ones pass in < 2 % (see benchmarks)."""
    theta, draws, y = linear(1000, 100, 3, kind)
    found = battery(draws, theta, y, log_likelihood=log_likelihood if likelihood else None, names=["a", "b"])
    assert (found.p_value < 0.01) == (kind != "exact")
    certificate = found.certificate("linear")
    assert certificate.verdict == ("passed" if kind == "exact" else "failed")
    assert ("calibration of log-likelihood" in [test.name for test in certificate.tests]) == likelihood


def test_blind_spots_are_where_they_are_said_to_be() -> None:
    """Why a battery: SBC of margins and random TARP accept the prior, margins accept wrong correlations (1 % each)."""
    theta, draws, y = linear(1000, 100, 4, "prior")
    assert all(entry.p_values > 0.01 for entry in sbc(theta, draws))
    assert tarp(theta, draws).p_values > 0.01
    assert tarp(theta, draws, y, references="regression").p_values < 1e-6
    assert sbc_quantities(theta, draws, y, {"log-likelihood": log_likelihood})[0].p_values < 1e-6
    theta, draws, y = linear(1000, 100, 4, "correlation")
    assert all(entry.p_values > 0.01 for entry in sbc(theta, draws))
    assert sbc_quantities(theta, draws, y, {"product": lambda t, y: t[:, 0] * t[:, 1]})[0].p_values < 0.01


def test_false_alarm_rate_of_the_battery() -> None:
    """200 exact batteries at 10 %: the number of rejections has a binomial tail below 1e-3 outside of the limits."""
    generator = torch.Generator().manual_seed(5)
    theta = torch.randn(200, 100, 1, generator=generator, dtype=torch.float64)
    y = theta + torch.randn(200, 100, 1, generator=generator, dtype=torch.float64)
    noise = torch.randn(200, 100, 20, 1, generator=generator, dtype=torch.float64)
    ranks = battery_ranks(theta, y.unsqueeze(2) / 2 + noise / 2**0.5, y)
    rejected = int((holm(np.stack([entry.p_values for entry in ranks])).min(0) < 0.1).sum())
    assert 5 <= rejected <= stats.binom.ppf(0.999, 200, 0.1)


def test_tarp_does_not_depend_on_units_and_takes_references() -> None:
    theta, draws, y = linear(300, 50, 6, "width")
    scale = torch.tensor([1e6, 1e-3], dtype=torch.float64)
    torch.testing.assert_close(tarp(theta, draws).values, tarp(theta * scale + 5, draws * scale + 5).values)
    by_function = tarp(theta, draws, y, references=lambda data: data)
    torch.testing.assert_close(by_function.values, tarp(theta, draws, references=y).values, atol=1.0, rtol=0)
    assert by_function.name == "TARP with data-dependent references"


def test_draws_may_come_from_a_sampler_and_ranks_are_reproducible() -> None:
    theta, draws, y = linear(200, 100, 7)
    found = battery(lambda data, count: draws[:, :count], theta, y, count=40)
    again = battery(draws[:, :40], theta, y)
    assert found.draws == 40 and found.simulations == 200
    for a, b in zip(found.ranks, again.ranks, strict=True):
        assert torch.equal(a.values, b.values)
    assert found.tests[-1].outcome == "warned"  # too small for the stated power


def test_few_simulations_are_refused_where_ranks_are_uniform_only_asymptotically() -> None:
    """Range and regression are made of the same simulations: at 20 of them 1.5 % of exact posteriors fail at 1 %."""
    theta, draws, y = linear(49, 20, 3)
    for call in (lambda: battery(draws, theta, y), lambda: tarp(theta, draws)):
        with pytest.raises(UserError, match=r"49 simulations.*50 or more"):
            call()
    assert len(sbc(theta[:20], draws[:20])) == 2  # exact at any number


@pytest.mark.slow
def test_the_battery_keeps_its_level_at_the_fewest_simulations() -> None:
    """Exact posteriors, 50 simulations, level 1 %, 4000 repetitions: 1.2 % fail (at 10 simulations 2 %).

    Above 2 % with probability 1e-5.
    """
    generator = torch.Generator().manual_seed(0)
    theta = torch.randn(4000, 50, 2, generator=generator, dtype=torch.float64)
    draws = torch.randn(4000, 50, 20, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(4000, 50, 1, generator=generator, dtype=torch.float64)
    p = holm(np.stack([entry.p_values for entry in battery_ranks(theta, draws, y)])).min(0)
    assert (p < 0.01).mean() < 0.02


def test_expected_coverage_against_normal_quantiles() -> None:
    """Draws at 0.8 of the width: coverage is 2 Phi(0.8 z) - 1 up to 5 standard errors (false-alarm rate 1e-6 per figure)."""
    theta, draws, _ = linear(4000, 400, 8, "width")
    coverage = expected_coverage(sbc(theta, draws))
    wanted = 2 * stats.norm.cdf(0.8 * stats.norm.ppf((1 + np.array(coverage.levels)) / 2)) - 1
    assert np.abs(coverage.share - wanted[:, None]).max() < 5 * 0.5 / 4000**0.5 + 0.003
    assert all(test.outcome == "failed" for test in coverage.tests())
    assert (coverage.low <= coverage.share).all() and (coverage.share <= coverage.high).all()
    theta, draws, _ = linear(2000, 100, 9)
    assert all(test.outcome == "passed" for test in expected_coverage(sbc(theta, draws)).tests())  # fails in 1 % of seeds


def test_recalibration_restores_coverage_and_is_labelled() -> None:
    """Coverage of fresh parameters is Beta-distributed around the level: within 5 of its standard deviations."""
    theta, draws, _ = linear(2000, 200, 10, "width")
    recalibration = Recalibration(theta, draws, levels=(0.68, 0.95))
    assert float((recalibration.inflation - 1.25).abs().max()) < 0.12
    fresh, more, _ = linear(500, 200, 11, "width")
    inside = torch.zeros(2, 2)
    for truth, rows in zip(fresh, more, strict=True):
        found = recalibration.intervals(rows)
        inside += (found.low <= truth) & (truth <= found.high)
    for row, level in enumerate((0.68, 0.95)):
        error = (level * (1 - level) * (1 / 500 + 1 / 2000)) ** 0.5
        assert float((inside[row] / 500 - level).abs().max()) < 5 * error
    assert all("recalibrated" in test.description and test.outcome == "reported" for test in recalibration.tests)
    with pytest.raises(UserError, match="needs 19 or more"):
        Recalibration(theta[:10], draws[:10], levels=(0.95,))


def test_recalibration_holds_for_the_number_of_draws_it_was_made_with() -> None:
    """Factors from 1000 exact draws are 1; intervals of 8 draws are too narrow by construction, so they need others."""
    theta, draws, _ = linear(300, 40, 10)
    recalibration = Recalibration(theta, draws, levels=(0.68,))
    for count in (8, 39, 41):
        with pytest.raises(UserError, match=rf"made with 40 draws.*{count} were given"):
            recalibration.intervals(torch.randn(count, 2))
    with pytest.raises(UserError, match=r"made with 40 draws.*20 were given"):
        recalibration.intervals(Posterior(torch.randn(2, 10, 2)))
    result = Posterior(torch.randn(2, 100, 2))  # more draws than were calibrated with are thinned
    found, wanted = recalibration.intervals(result), recalibration.intervals(result.resampled(40))
    assert torch.equal(found.low, wanted.low) and torch.equal(found.high, wanted.high)
    assert "40 draws" in repr(recalibration)


def test_bad_input_is_named() -> None:
    theta, draws, y = linear(50, 10, 12)
    with pytest.raises(UserError, match=r"\(50, 10, 2\) do not fit parameters of shape \(50, 3\)"):
        sbc(torch.zeros(50, 3), draws)
    with pytest.raises(UserError, match="1 of 50 rows of parameters have NaN"):
        sbc(theta.index_fill(0, torch.tensor([3]), torch.nan), draws)
    with pytest.raises(UserError, match="need the data y"):
        tarp(theta, draws, references="regression")
    with pytest.raises(UserError, match="'q' of 50 rows has shape"):
        sbc_quantities(theta, draws, y, {"q": lambda t, data: t})
    with pytest.raises(UserError, match="'q' is NaN on 50 of 50 rows"):
        sbc_quantities(theta, draws, y, {"q": lambda t, data: t[:, 0] * torch.nan})
    with pytest.raises(UserError, match="2 names for"):
        sbc(theta[:, :1], draws[..., :1], names=["a", "b"])
    with pytest.raises(UserError, match="level=2"):
        battery(draws, theta, y, level=2)
    assert "p = " in repr(Ranks("x", torch.rand(10)))
