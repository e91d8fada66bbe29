"""Corrections against generators whose conditional quantile functions are known.

The full runs are `python -m sciflow_physics.truth.coverage --experiments 60` with and without `--negative 0.15`.
"""

from __future__ import annotations

import numpy as np
import pytest
from sciflow_physics import truth
from sciflow_physics.model.learning import fit_correction
from sciflow_physics.truth.coverage import (
    FIT,
    POINTS,
    binomial_interval,
    independent_rate,
    inside,
    pseudo_experiment,
    quantities,
)
from scipy import stats


@pytest.mark.parametrize("feature", truth.FEATURES)
@pytest.mark.parametrize("kind", ["sim", "data"])
def test_draws_follow_the_stated_quantiles(feature: str, kind: str) -> None:
    """Fractions below Q(0.2), Q(0.6), Q(0.9) at fixed conditions; 5 binomial standard deviations of 20,000."""
    for pt, eta in POINTS:
        rows = truth.draw(kind, 20_000, 3, pt=pt, eta=eta)  # type: ignore[arg-type]
        zero = float(truth.zero_probability(kind, np.array(pt), np.array(eta))) if feature == "isolation" else 0.0  # type: ignore[arg-type]
        for level in (0.2, 0.6, 0.9):
            edge = float(truth.quantile(kind, feature, level, pt, eta))  # type: ignore[arg-type]
            expected = max(level, zero)
            assert abs((rows[feature].values <= edge).mean() - expected) < 5 * np.sqrt(0.25 / 20_000)


def test_signed_sum_is_the_pure_sample_and_the_absolute_one_is_not() -> None:
    """Weighted distribution of the width at one condition, 40,000 events: 5 standard deviations of the signed sum."""
    pt, eta = POINTS[0]
    rows = truth.draw("data", 40_000, 1, negative=0.15, pt=pt, eta=eta)
    weight = rows["weight"].values
    assert (weight < 0).mean() == pytest.approx(0.15, abs=0.01)
    median = float(truth.quantile("data", "width", 0.5, pt, eta))
    below = rows["width"].values < median
    assert abs(np.average(below, weights=weight) - 0.5) < 5 * 0.5 * np.sqrt((weight**2).sum()) / weight.sum()
    assert np.average(below, weights=abs(weight)) < 0.42


def test_quantities_cover_every_feature_and_the_point_mass() -> None:
    assert {quantity.feature for quantity in quantities()} == set(truth.FEATURES)
    assert sum(quantity.level is None for quantity in quantities()) == len(POINTS)
    low, high = binomial_interval(60)
    assert stats.binom.cdf(round(high * 60), 60, 0.6827) - stats.binom.cdf(round(low * 60) - 1, 60, 0.6827) >= 0.99


def test_coverage_reduced() -> None:
    """Two experiments: the mean coverage of 36 correlated quantities lies between 0.4 and 0.95.

    One experiment's mean coverage is 0.70 +- 0.13 (measured on other seeds), so a false alarm has a probability below 1e-3.
    """
    tables = np.stack([pseudo_experiment(seed, test_rows=4000) for seed in (1, 2)])
    assert 0.4 < inside(tables).mean() < 0.95


def test_negative_weights_are_needed() -> None:
    """The same fit with and without the sign: the band of the right one holds the truth, that of \\|w\\| does not."""
    right, wrong = (pseudo_experiment(4, test_rows=4000, negative=0.15, absolute=absolute) for absolute in (False, True))
    assert inside(right[None]).mean() > 0.4
    assert inside(wrong[None]).mean() < 0.25


def test_simulation_like_data_gives_the_identity() -> None:
    """Both samples from one generator: at most 5 % of quantities leave three half bands, and most rows barely move."""
    sim, data = truth.draw("sim", 4000, 91), truth.draw("sim", 4000, 92)
    correction = fit_correction(sim, data, truth.roles(), **FIT)
    far = []
    for pt, eta in POINTS:
        out = correction.apply(truth.draw("sim", 4000, 93, pt=pt, eta=eta))
        for name, level in (("leakage", 0.25), ("leakage", 0.75), ("width", 0.25), ("width", 0.75), ("shape", 0.5)):
            value, low, high = (np.quantile(out[f"{name}_corr{suffix}"], level) for suffix in ("", "_down", "_up"))
            far.append(abs(value - np.quantile(out[name], level)) > 1.5 * (high - low))
        moved = np.abs(out["width_corr"].values - out["width"].values)
        assert np.median(moved) < 0.15  # of a distribution with standard deviation 1
        assert abs((out["isolation_corr"] == 0).mean() - (out["isolation"] == 0).mean()) < 0.06
    assert np.mean(far) <= 0.05


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 60 fits of 5 to 8 seconds, more on a busy machine
@pytest.mark.parametrize("negative", [0.0, 0.15])
def test_coverage_in_full(negative: float) -> None:
    """60 experiments: one random quantity each within the 99 % binomial interval; of 36 quantities at most 2 outside it."""
    tables = np.stack([pseudo_experiment(seed, negative=negative) for seed in range(1, 61)])
    low, high = binomial_interval(60)
    assert low <= independent_rate(tables) <= high
    rates = inside(tables).mean(0)
    assert ((rates < low) | (rates > high)).sum() <= 2


@pytest.mark.slow
@pytest.mark.timeout(3600)  # 60 fits of 5 to 8 seconds, more on a busy machine
def test_absolute_weights_fail_the_same_test() -> None:
    tables = np.stack([pseudo_experiment(seed, negative=0.15, absolute=True) for seed in range(1, 61)])
    low, high = binomial_interval(60)
    assert independent_rate(tables) < low
    rates = inside(tables).mean(0)
    assert ((rates < low) | (rates > high)).sum() > 2
