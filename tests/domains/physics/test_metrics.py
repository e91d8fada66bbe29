"""Metrics against closed forms, scipy, scikit-learn and hand-computed cases."""

import numpy as np
import pytest
from sciflow_physics.metrics import (
    PooledOrder,
    Sample,
    auc,
    compare_marginals,
    correlation,
    correlation_difference,
    cross_fit,
    data_floor,
    fold_of_event,
    kolmogorov_smirnov,
    multiplicities,
    null_marginals,
    profile,
    wasserstein,
)
from scipy import stats

FAST = {"max_iter": 40}


def sample(columns, weight=None, category=None, event=None):
    rows = len(next(iter(columns.values())))
    event = np.arange(rows) if event is None else np.asarray(event)
    return Sample(
        {name: np.asarray(column, dtype=float) for name, column in columns.items()},
        np.ones(rows) if weight is None else np.asarray(weight, dtype=float),
        np.full(rows, "all") if category is None else np.asarray(category),
        event,
        int(event.max()) + 1,
    )


# --- statistics of the common order ---------------------------------------------------------------------------------


def test_unweighted_distances_equal_scipy():
    rng = np.random.default_rng(0)
    x, y = np.round(rng.normal(size=300), 1), np.round(rng.normal(0.3, 1.2, 200), 1)  # rounded: many ties
    assert kolmogorov_smirnov(x, y) == pytest.approx(stats.ks_2samp(x, y).statistic, abs=1e-12)
    assert wasserstein(x, y) == pytest.approx(stats.wasserstein_distance(x, y), abs=1e-12)
    assert auc(x, y) == pytest.approx(stats.mannwhitneyu(x, y).statistic / (300 * 200), abs=1e-12)


def test_weighted_distances_equal_scipy_and_sklearn():
    from sklearn.metrics import roc_auc_score

    rng = np.random.default_rng(1)
    x, y = np.round(rng.normal(size=300), 1), np.round(rng.normal(0.3, 1.2, 200), 1)
    wx, wy = rng.gamma(1.0, size=300), rng.gamma(2.0, size=200)
    assert wasserstein(x, y, wx, wy) == pytest.approx(stats.wasserstein_distance(x, y, wx, wy), abs=1e-12)
    label = np.r_[np.ones(300), np.zeros(200)]
    expected = roc_auc_score(label, np.r_[x, y], sample_weight=np.r_[wx / wx.sum(), wy / wy.sum()])
    assert auc(x, y, wx, wy) == pytest.approx(expected, abs=1e-12)


def test_integer_weights_are_repetitions():
    rng = np.random.default_rng(2)
    x, y = rng.normal(size=80), np.r_[np.zeros(20), rng.normal(size=40)]
    wx, wy = rng.integers(1, 5, 80), rng.integers(0, 4, 60)
    order, repeated = PooledOrder(x, y), PooledOrder(np.repeat(x, wx), np.repeat(y, wy))
    assert order.kolmogorov_smirnov(wx, wy) == pytest.approx(repeated.kolmogorov_smirnov(), abs=1e-12)
    assert order.wasserstein(wx, wy) == pytest.approx(repeated.wasserstein(), abs=1e-12)
    assert order.auc(wx, wy) == pytest.approx(repeated.auc(), abs=1e-12)
    matrix = rng.normal(size=(80, 3)).round(1)
    for rank in (False, True):
        expected = correlation(np.repeat(matrix, wx, axis=0), rank=rank)
        np.testing.assert_allclose(correlation(matrix, wx, rank=rank), expected, atol=1e-12)


def test_signed_weights_cancel():
    """A contamination with weight +w and the same again with -w leaves every statistic as it was."""
    rng = np.random.default_rng(3)
    x, y, dirt = rng.normal(size=200), rng.normal(0.5, 1, 150), rng.normal(3, 1, 50)
    wx = np.r_[np.ones(200), np.full(50, 0.7), np.full(50, -0.7)]
    order, clean = PooledOrder(np.r_[x, dirt, dirt], y), PooledOrder(x, y)
    for statistic in ("kolmogorov_smirnov", "wasserstein", "auc"):
        assert getattr(order, statistic)(wx, None) == pytest.approx(getattr(clean, statistic)(), abs=1e-12)
    rows = rng.normal(size=(200, 2))
    extra = rng.normal(4, 1, (50, 2))
    np.testing.assert_allclose(correlation(np.r_[rows, extra, extra], wx), correlation(rows), atol=1e-12)
    assert profile(np.r_[x, dirt, dirt], np.zeros(300), [-1, 1], wx).mean[0] == pytest.approx(x.mean(), abs=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([], [1.0]), "both samples need rows"),
        (([np.nan], [1.0]), "1 of 2 values are not finite"),
        (([1.0, 2.0], [1.0], [1.0, -1.0]), "sum to 0"),
        (([1.0, 2.0], [1.0], [1.0]), r"shape \(1,\), the sample has shape \(2,\)"),
    ],
)
def test_what_cannot_be_compared_says_why(arguments, message):
    with pytest.raises(ValueError, match=message):
        kolmogorov_smirnov(*arguments)


# --- classifier two-sample test -------------------------------------------------------------------------------------


def test_auc_of_two_gaussians_is_the_normal_integral():
    """AUC = Phi(d / sqrt 2) for unit Gaussians d apart. Tolerance 4 sigma = 0.02: false alarm below 1e-3."""
    rng = np.random.default_rng(4)
    first, second = sample({"x": rng.normal(0.8, 1, 6000)}), sample({"x": rng.normal(0, 1, 6000)})
    result = cross_fit(first, second, ["x"], bootstrap=20, trees=FAST)
    assert result.auc == pytest.approx(stats.norm.cdf(0.8 / np.sqrt(2)), abs=0.02)
    # DeLong's variance in the binormal case is near 0.0045 here
    assert 0.002 < result.error < 0.01


def test_auc_sees_correlations_that_no_marginal_shows():
    rng = np.random.default_rng(5)
    a, b = rng.normal(size=(4000, 2)), rng.normal(size=(4000, 2))
    b[:, 1] = 0.8 * b[:, 0] + 0.6 * b[:, 1]
    first, second = sample({"x": a[:, 0], "y": a[:, 1]}), sample({"x": b[:, 0], "y": b[:, 1]})
    result = cross_fit(first, second, ["x", "y"], bootstrap=2, trees=FAST)
    assert result.auc > 0.7


def test_floor_contains_one_half_at_the_stated_rate():
    """24 pairs of equal samples: |AUC - 1/2| < 2 errors at about 95 %; fewer than 18 of 24 has probability 1e-4."""
    covered, pulls = 0, []
    for toy in range(24):
        rng = np.random.default_rng(100 + toy)
        data = sample({"x": rng.normal(size=1600), "y": rng.exponential(size=1600)}, event=np.arange(1600) // 2)
        result = data_floor(data, ["x", "y"], folds=2, seed=toy, bootstrap=40, splits=1, trees={"max_iter": 15})
        pulls.append((result.auc - 0.5) / result.error)
        covered += abs(pulls[-1]) < 2
    assert covered >= 18
    assert abs(np.mean(pulls)) < 0.9  # 4.4 sigma of a mean of 24 unit pulls


def test_rows_of_one_event_are_never_split():
    """Both rows of an event carry its own random number: trees that saw one row would know the other."""
    rng = np.random.default_rng(6)
    event = np.repeat(np.arange(1500), 2)
    pair = [sample({"x": rng.random(1500)[event]}, event=event) for _ in range(2)]
    trees = {"max_iter": 100, "min_samples_leaf": 1, "max_leaf_nodes": 2000, "learning_rate": 0.5}
    honest = cross_fit(*pair, ["x"], folds=2, bootstrap=20, trees=trees)
    split = [sample({"x": part.columns["x"]}) for part in pair]
    leaking = cross_fit(*split, ["x"], folds=2, bootstrap=2, trees=trees)
    assert abs(honest.auc - 0.5) < 5 * honest.error
    assert leaking.auc > 0.55  # not 1: the trees bin their input


def test_signed_training_weights_find_no_difference_where_there_is_none():
    """Signal + dirt(+1), minus dirt(-1), against signal: 0.5 signed; with abs(weight) the dirt is found."""
    rng = np.random.default_rng(7)
    signal, other = rng.normal(0, 1, 6000), rng.normal(0, 1, 6000)
    dirt, subtracted = rng.normal(3, 0.5, 1500), rng.normal(3, 0.5, 1500)
    x = {"x": np.r_[signal, dirt, subtracted]}
    weight = np.r_[np.ones(7500), -np.ones(1500)]
    signed = cross_fit(sample(x, weight), sample({"x": other}), ["x"], bootstrap=50, trees=FAST)
    wrong = cross_fit(sample(x, np.abs(weight)), sample({"x": other}), ["x"], bootstrap=2, trees=FAST)
    assert abs(signed.auc - 0.5) < 4 * signed.error + 0.005
    assert wrong.auc > 0.6


def test_absent_values_are_a_branch_of_the_trees():
    """Half the rows of both samples lack the feature: P(right) is 1/2 there, 1 elsewhere: AUC = 1 - 1/2^3."""
    x = np.r_[np.full(500, np.nan), np.zeros(500)]
    y = np.r_[np.full(500, np.nan), np.ones(500)]
    result = cross_fit(sample({"x": x}), sample({"x": y}), ["x"], bootstrap=2, trees={**FAST, "learning_rate": 0.5})
    assert result.auc == pytest.approx(0.875, abs=0.02)


def test_bootstrap_is_paired_and_events_move_together():
    first, second = (list(multiplicities(50, 3, seed)) for seed in (1, 1))
    assert all((a == b).all() for a, b in zip(first, second, strict=True))
    assert [int(counts.sum()) for counts in multiplicities(50, 2, 0, draws=80)] == [80, 80]
    assert sorted(np.bincount(fold_of_event(11, 3, 0))) == [3, 4, 4]
    with pytest.raises(ValueError, match="2 events cannot fill 5 folds"):
        fold_of_event(2, 5, 0)


# --- marginals and their null ---------------------------------------------------------------------------------------


def with_zeros(rng, rows, fraction):
    return np.where(rng.random(rows) < fraction, 0.0, rng.exponential(size=rows))


def test_marginals_per_category_and_absent_rows():
    rng = np.random.default_rng(8)
    category = np.repeat(["EB", "EE"], 400)
    x = np.r_[with_zeros(rng, 400, 0.6), np.full(200, np.nan), with_zeros(rng, 200, 0.3)]
    first = sample({"h": x}, category=category)
    result = compare_marginals(first, first, "h", "EE", point_mass=0.0, bootstrap=50)
    assert result.rows == (200, 200)
    assert result.ks == pytest.approx(0, abs=1e-12) and result.wasserstein == pytest.approx(0, abs=1e-12)
    assert result.point_mass[0] == pytest.approx((x[600:] == 0).mean())
    binomial = np.sqrt(0.3 * 0.7 / 200)
    assert result.point_mass_error[0] == pytest.approx(binomial, rel=0.4)


def test_correlated_rows_of_an_event_widen_the_errors():
    """Every event counted twice: the error by event is sqrt(2) times the one that takes rows as independent."""
    rng = np.random.default_rng(9)
    values = np.repeat(with_zeros(rng, 500, 0.5), 2)
    other = sample({"h": with_zeros(rng, 1000, 0.5)})
    by_event = compare_marginals(
        sample({"h": values}, event=np.repeat(np.arange(500), 2)), other, "h", "all", point_mass=0.0, bootstrap=400
    )
    by_row = compare_marginals(sample({"h": values}), other, "h", "all", point_mass=0.0, bootstrap=400)
    ratio = by_event.point_mass_error[0] / by_row.point_mass_error[0]
    assert ratio == pytest.approx(np.sqrt(2), rel=0.15)


def test_null_quantile_is_kolmogorovs():
    """Equal sizes n, no weights: the 95 % point is 1.358 sqrt(2 / n); 400 replicates know it to about 5 %."""
    rng = np.random.default_rng(10)
    data = sample({"h": rng.normal(size=1000)})
    null = null_marginals(data, "h", "all", replicates=400)
    assert null.ks_quantile() == pytest.approx(1.358 * np.sqrt(2 / 1000), rel=0.12)
    larger = null_marginals(data, "h", "all", events=100_000, replicates=200)
    assert larger.ks_quantile() == pytest.approx(1.358 * np.sqrt(1 / 1000 + 1e-5), rel=0.15)
    with pytest.raises(ValueError, match="no point mass"):
        null.point_mass_quantile()


def test_null_knows_the_loss_of_power_by_weights():
    """Gamma(1) weights have sum(w)^2 / sum(w^2) = n / 2, so the 95 % point grows by sqrt((1 + 2) / 2)."""
    rng = np.random.default_rng(11)
    data = sample({"h": rng.normal(size=2000)})
    plain = null_marginals(data, "h", "all", replicates=300)
    weighted = null_marginals(data, "h", "all", weight=rng.gamma(1.0, size=5000), replicates=300)
    assert weighted.ks_quantile() / plain.ks_quantile() == pytest.approx(np.sqrt(1.5), rel=0.1)


def test_null_accepts_equal_samples_and_refuses_different_ones():
    """40 true nulls at 95 %: more than 7 rejections has probability 7e-4. A shift of 0.3 is always found."""
    rejected = 0
    for toy in range(40):
        rng = np.random.default_rng(200 + toy)
        first, data = sample({"h": with_zeros(rng, 400, 0.5)}), sample({"h": with_zeros(rng, 600, 0.5)})
        null = null_marginals(data, "h", "all", events=400, point_mass=0.0, replicates=100, seed=toy)
        result = compare_marginals(first, data, "h", "all", point_mass=0.0, bootstrap=2)
        rejected += result.ks > null.ks_quantile()
        shifted = sample({"h": first.columns["h"] + 0.3})
        assert compare_marginals(shifted, data, "h", "all", bootstrap=2).ks > null.ks_quantile()
        assert abs(np.subtract(*result.point_mass)) < 3 * null.point_mass_quantile()
    assert rejected <= 7


# --- dependence -----------------------------------------------------------------------------------------------------


def test_correlations_equal_scipy():
    rng = np.random.default_rng(12)
    x = np.round(rng.normal(size=(300, 3)) @ rng.normal(size=(3, 3)), 1)
    np.testing.assert_allclose(correlation(x), np.corrcoef(x.T), atol=1e-12)
    np.testing.assert_allclose(correlation(x, rank=True), stats.spearmanr(x).statistic, atol=1e-12)
    assert not correlation_difference(x, x).any()
    weight = rng.gamma(1, size=300)
    expected = np.cov(x.T, aweights=weight, ddof=0)
    scale = np.sqrt(np.diag(expected))
    np.testing.assert_allclose(correlation(x, weight), expected / np.outer(scale, scale), atol=1e-12)


def test_correlation_leaves_absent_values_out_pairwise():
    x = np.array([[0.0, 1.0, np.nan], [1.0, 3.0, 2.0], [2.0, 5.0, 1.0], [3.0, 0.0, 0.0]])
    result = correlation(x)
    assert result[0, 2] == pytest.approx(-1)
    assert np.isnan(correlation([[1.0, 1.0], [1.0, 2.0]])[0, 1])
    with pytest.raises(ValueError, match=r"shape \(4, 3\) and weights of shape \(2,\)"):
        correlation(x, [1.0, 2.0])


def test_profile_by_hand():
    result = profile([1.0, 2.0, 6.0, 5.0, np.nan], [0.0, 0.5, 0.9, 2.0, 0.1], [0, 1, 2, 3], [1, 1, 2, 1, 1])
    assert result.rows.tolist() == [3, 0, 1]
    assert result.mean[0] == pytest.approx(15 / 4)
    residuals = np.array([1 - 3.75, 2 - 3.75, 2 * (6 - 3.75)])
    assert result.error[0] == pytest.approx(np.sqrt((residuals**2).sum()) / 4)
    assert np.isnan(result.mean[1])
    grouped = profile([1.0, 2.0], [0.1, 0.2], [0, 1], event=[7, 7])
    assert grouped.error[0] == pytest.approx(0)  # (1 - 1.5) + (2 - 1.5): the event as a whole has no spread


def test_profile_error_covers_the_truth():
    """100 toys of 200 pairs of fully correlated rows: 68 % inside; fewer than 54 or more than 82: 2e-3."""
    rng = np.random.default_rng(13)
    inside = 0
    for _ in range(100):
        y = np.repeat(rng.normal(1.0, 2.0, 200), 2)
        result = profile(y, np.zeros(400), [-1, 1], event=np.repeat(np.arange(200), 2))
        inside += abs(result.mean[0] - 1) < result.error[0]
    assert 54 <= inside <= 82
