"""Normal scores per group: known quantile functions, point masses with thresholds, exact inverses."""

import numpy as np
import pytest
import torch
from sciflow_physics.model.marginals import Marginals
from scipy import stats


def fitted(*columns, weight=None, band=None, group=None, **options):
    z = torch.tensor(np.stack(columns, axis=1))
    group = torch.zeros(len(z), dtype=torch.int64) if group is None else torch.as_tensor(group)
    weight = torch.ones(len(z)) if weight is None else torch.as_tensor(weight)
    band = None if band is None else torch.tensor(band, dtype=torch.float64)
    return Marginals(z.shape[1], int(group.max()) + 1, **options).fit(z, group, weight, band=band), z, group


def test_scores_are_the_known_ones():
    """Exponential values: g = Phi^-1(1 - exp(-z)). 20,000 rows know F to 0.007 at 2 sigma of Kolmogorov's distance."""
    rng = np.random.default_rng(0)
    marginals, _, _ = fitted(rng.exponential(size=20_000))
    z = torch.tensor([[0.1], [0.5], [1.0], [3.0]], dtype=torch.float64)
    g = marginals(z, torch.zeros(4, dtype=torch.int64))
    np.testing.assert_allclose(stats.norm.cdf(g[:, 0].numpy()), 1 - np.exp(-z[:, 0].numpy()), atol=0.01)


def test_training_rows_become_standard_normal_in_each_group():
    rng = np.random.default_rng(1)
    group = rng.integers(0, 2, 8000)
    values = np.where(group == 0, rng.normal(5, 2, 8000), rng.gamma(2.0, size=8000))
    marginals, z, groups = fitted(values, group=group)
    g = marginals(z, groups)[:, 0].numpy()
    for number in (0, 1):
        assert stats.kstest(g[group == number], "norm").statistic < 0.01


def test_weights_are_repetitions():
    rng = np.random.default_rng(2)
    values = rng.normal(size=2000)
    weight = np.where(values > 0.3, 3, 1)
    weighted, _, _ = fitted(values, weight=weight.astype(float))
    repeated, _, _ = fitted(np.repeat(values, weight))
    unweighted, _, _ = fitted(values)
    z = torch.linspace(-1.5, 1.5, 9, dtype=torch.float64)[:, None]
    zero = torch.zeros(9, dtype=torch.int64)
    torch.testing.assert_close(weighted(z, zero), repeated(z, zero), atol=0.02, rtol=0)
    assert float((weighted(z, zero) - unweighted(z, zero)).abs().max()) > 0.2


@pytest.mark.parametrize("band", [None, [[-1.1, -0.1]]])
def test_round_trip_and_order(band):
    rng = np.random.default_rng(3)
    values = np.where(rng.random(3000) < 0.4, -rng.random(3000) - 0.1, 0.7 + rng.exponential(size=3000))
    marginals, z, group = fitted(values, band=band)
    far = torch.cat([z, torch.tensor([[-50.0], [80.0]], dtype=torch.float64)])
    group = torch.zeros(len(far), dtype=torch.int64)
    g = marginals(far, group)
    torch.testing.assert_close(marginals.inverse(g, group), far, atol=1e-9, rtol=1e-9)
    ordered = marginals(far.sort(0).values, group)
    assert bool((ordered.diff(dim=0) >= 0).all()) and bool(torch.isfinite(g).all())


def test_point_mass_and_threshold_are_carried_over():
    """Simulation 0.8 zeros and any value above, data 0.3 zeros and nothing between 0 and 0.7: neither value comes out.

    P(zero) of the data to 4 binomial sigma of 20,000 rows.
    """
    rng = np.random.default_rng(4)
    group = np.repeat([0, 1], 20_000)
    zero = rng.random(40_000) < np.where(group == 0, 0.8, 0.3)
    place = -0.02 - (1 - np.sqrt(rng.random(40_000)))  # triangular noise
    above = np.where(group == 0, 0.0, 0.7) + rng.exponential(size=40_000)
    marginals, z, groups = fitted(np.where(zero, place, above), band=[[-1.02, -0.02]], group=group)
    sim = z[:20_000]
    new = sim.new_tensor(rng.normal(size=(20_000, 1)))  # what a flow may give
    out = marginals.inverse(new, groups[20_000:])[:, 0].numpy()
    assert abs((out < -0.01).mean() - 0.3) < 4 * np.sqrt(0.3 * 0.7 / 20_000)
    assert ((out > -0.01) & (out < 0.7)).mean() < 5e-4
    own = marginals(sim, groups[:20_000])[:, 0].numpy()
    assert ((own < stats.norm.ppf(zero[:20_000].mean())) == zero[:20_000]).mean() > 0.999
    assert stats.kstest(own, "norm").statistic < 0.012  # the band's own noise is 1.36 / sqrt(16,000) at 95 %


def test_a_group_with_few_rows_keeps_the_identity_and_absent_rows_are_zero():
    rng = np.random.default_rng(5)
    z = torch.tensor(rng.normal(3, 2, (100, 2)))
    mask = torch.ones(100, 2, dtype=torch.bool)
    mask[:90, 1] = False
    group = torch.zeros(100, dtype=torch.int64)
    marginals = Marginals(2, 1).fit(z, group, torch.ones(100), mask)
    g = marginals(z, group, mask)
    torch.testing.assert_close(g[90:, 1], z[90:, 1])
    assert not g[:90, 1].any() and not marginals.inverse(g, group, mask)[:90, 1].any()
    assert abs(float(g[:, 0].mean())) < 0.1


def test_constant_and_one_sided_values_stay_finite():
    for values in (np.full(50, 2.0), np.r_[np.full(47, -1.0), 1.0, 2.0, 3.0], np.r_[np.full(25, -1.0), np.full(25, 1.0)]):
        marginals, z, group = fitted(values, band=[[-1.5, -1.0]])
        g = marginals(z, group)
        assert bool(torch.isfinite(g).all())
        torch.testing.assert_close(marginals.inverse(g, group), z, atol=1e-3, rtol=0)


def test_state_and_precision_survive():
    rng = np.random.default_rng(6)
    marginals, z, group = fitted(rng.exponential(size=200))
    again = Marginals(1, 1)
    again.load_state_dict(marginals.state_dict())
    assert torch.equal(again(z, group), marginals(z, group))
    assert again.float().point.dtype == torch.float64
    assert Marginals(1, 1).recorded_arguments == {"features": 1, "groups": 1, "knots": 64}
    with pytest.raises(ValueError, match="knots is 4"):
        Marginals(1, 1, knots=4)
