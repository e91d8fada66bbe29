"""The conditional method: pairing, discrepancy, and that the map does not ignore its input."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import xarray as xr
from sciflow_physics import truth
from sciflow_physics.model import Correction, fit_correction
from sciflow_physics.model.conditional import matched_rows, maximum_mean_discrepancy
from scipy import stats

from sciflow.errors import UserError

SMALL = {
    "method": "conditional", "folds": 1, "members": 0, "hidden": (32,), "transforms": 2, "bins": 6, "batch_size": 256,
    "learning_rate": 5e-3, "ema": None, "progress": False,
}  # fmt: skip


def test_discrepancy_has_its_closed_form_between_normals() -> None:
    """For N(0, 1) and N(m, 1) a kernel exp(-d^2 / 2 s) has MMD^2 = 2 (1 - exp(-m^2 / 2 (s + 2))) sqrt(s / (s + 2)).

    Tolerance: 5 standard deviations of the estimate from 20 batches.
    """
    generator = torch.Generator().manual_seed(1)
    shift = 1.0
    expected = np.mean([2 * (1 - np.exp(-(shift**2) / (2 * (s + 2)))) * np.sqrt(s / (s + 2)) for s in (0.25, 1.0, 4.0)])
    batches = torch.randn(20, 2, 500, 1, generator=generator, dtype=torch.float64)
    apart = torch.stack([maximum_mean_discrepancy(x, y + shift) for x, y in batches])
    same = torch.stack([maximum_mean_discrepancy(x, y) for x, y in batches])
    for found, wanted in ((apart, expected), (same, 0.0)):
        assert abs(found.mean() - wanted) < 5 * found.std() / np.sqrt(20)
    # weights: those of the second half are 0, so that it cannot matter
    x, y = batches[0]
    weight = (torch.arange(500) < 250).double()
    spoiled = torch.where(weight[:, None] > 0, x, 50.0)
    assert torch.allclose(maximum_mean_discrepancy(spoiled, y, weight), maximum_mean_discrepancy(x[:250], y[:250]))


def test_matches_share_the_condition_and_follow_the_weights() -> None:
    """Among 10 equal neighbours with weights 0 ... 9, row k is drawn with probability k / 45; chi-square at 1e-3."""
    sim, data = np.zeros((10, 2)), np.zeros((9000, 2))
    found = matched_rows(sim, data, np.arange(10.0), neighbours=10, matches=1, seed=0)[0]
    counts = np.bincount(found, minlength=10)
    assert counts[0] == 0
    assert stats.chisquare(counts[1:], 9000 * np.arange(1, 10) / 45).pvalue > 1e-3
    spread = np.linspace(0, 1, 1000)[:, None]
    near = matched_rows(spread, spread, np.ones(1000), neighbours=5, matches=3, seed=1)
    assert near.shape == (3, 1000) and np.abs(spread[near, 0] - spread[:, 0]).max() < 0.006
    assert not np.array_equal(near[0], near[1])
    with pytest.raises(UserError, match="weight 0"):
        matched_rows(sim, data, np.zeros(10), neighbours=2, matches=1, seed=0)


@pytest.fixture(scope="module")
def pair() -> tuple[xr.Dataset, xr.Dataset]:
    return truth.draw("sim", 1200, 1), truth.draw("data", 1200, 2)


@pytest.fixture(scope="module")
def correction(pair: tuple[xr.Dataset, xr.Dataset]) -> Correction:
    return fit_correction(*pair, truth.roles(), **SMALL, epochs=12, tolerance=0.6)


def rank_correlations(correction: Correction) -> tuple[list[float], list[float]]:
    """Per feature: of input and output; and of input and output after the simulated features were permuted among rows."""
    sim = truth.draw("sim", 3000, 8, pt=35.0, eta=0.5)  # one condition, so that nothing but the features tells rows apart
    permuted = sim.copy(deep=True)
    order = np.random.default_rng(1).permutation(3000)
    for name in truth.FEATURES:
        permuted[name] = ("row", sim[name].values[order])
    straight, crossed = correction.apply(sim), correction.apply(permuted)
    names = ("leakage", "width", "shape")
    return (
        [stats.spearmanr(sim[name], straight[f"{name}_corr"])[0] for name in names],
        [stats.spearmanr(sim[name], crossed[f"{name}_corr"])[0] for name in names],
    )


def test_permuting_the_simulation_destroys_the_correlation(correction: Correction) -> None:
    """Permuted: |rho| < 4.5 / sqrt(3000), false alarm 2e-5. A map that ignores its input has rho = 0 before as well."""
    straight, crossed = rank_correlations(correction)
    assert min(straight) > 0.3
    assert np.abs(crossed).max() < 4.5 / np.sqrt(3000)


def test_without_the_constraint_the_map_ignores_its_input(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    free = fit_correction(*pair, truth.roles(), **SMALL, epochs=5, tolerance=None, discrepancy=None)
    straight, _ = rank_correlations(free)
    assert max(straight) < 0.25


def test_the_corrected_distribution_is_nearer_to_the_data(correction: Correction) -> None:
    """Kolmogorov-Smirnov distance per feature, 4000 against 4000 rows: smaller than before by a third at least."""
    sim, data = truth.draw("sim", 4000, 20), truth.draw("data", 4000, 21)
    out = correction.apply(sim)
    for name in truth.FEATURES:
        before = stats.ks_2samp(sim[name], data[name]).statistic
        assert stats.ks_2samp(out[f"{name}_corr"], data[name]).statistic < 0.67 * before, name
    assert np.isfinite(out["width_corr"]).all()


def test_unknown_constraints_are_refused(pair: tuple[xr.Dataset, xr.Dataset]) -> None:
    with pytest.raises(UserError, match="does not take tolerence"):
        fit_correction(*pair, truth.roles(), method="conditional", tolerence=0.1)
