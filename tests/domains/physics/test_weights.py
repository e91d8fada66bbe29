"""Event weights against mixtures whose signed density is known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_physics import truth
from sciflow_physics.model.sample import Sample, fold_of, poisson, sample_of
from sciflow_physics.model.trees import TreeEnsemble, boosted_trees
from sciflow_physics.model.weights import effective_sample_size, matching_weights, positive_weights

from sciflow.errors import UserError


def sample(x: np.ndarray, conditions: np.ndarray, weight: np.ndarray) -> Sample:
    rows = np.arange(len(x))
    return Sample(x, conditions, np.zeros(len(x), np.int64), weight, np.ones(x.shape, bool), rows, rows)


def signed_mixture(rows: int, seed: int) -> Sample:
    """N(0, 1) after subtraction: 70 % of it, 15 % N(1.5, 1) hidden among the positive weights, 15 % subtracted."""
    rng = np.random.default_rng(seed)
    part = rng.uniform(size=rows)
    x = rng.normal(size=(rows, 1)) + 1.5 * (part < 0.3)[:, None]
    return sample(x, rng.uniform(size=(rows, 1)), np.where(part < 0.15, -1.0, 1.0))


def test_effective_sample_size_closed_form() -> None:
    assert effective_sample_size(np.array([2.0, 2.0, 2.0])) == 3.0
    assert effective_sample_size(np.array([3.0, -1.0])) == pytest.approx(0.4)


def test_positive_weights_have_the_signed_density_and_abs_has_not() -> None:
    """The pure sample has mean 0 and variance 1, |w| has mean 0.45. Tolerance: 5 standard deviations of the signed sum."""
    mixture = signed_mixture(20_000, 3)
    weight, report = positive_weights(mixture, names=("x", "c"))
    assert (weight >= 0).all() and np.isfinite(weight).all()
    x, pure = mixture.x[:, 0], 5 / np.sqrt(effective_sample_size(mixture.weight))
    assert abs(np.average(x, weights=weight)) < pure
    assert abs(np.average(x**2, weights=weight) - 1) < 2.2 * pure
    assert np.average(x, weights=abs(mixture.weight)) > 0.4
    assert weight.sum() == pytest.approx(mixture.weight.sum())
    assert report.negative_fraction == pytest.approx(0.15, abs=0.02)
    assert report.effective_before == pytest.approx(effective_sample_size(mixture.weight))
    assert report.effective_after > report.effective_before


def test_clipped_region_is_reported() -> None:
    """Beyond x = 3 only negative weights: nothing is learned there, and the report says where."""
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(size=4000), rng.uniform(3.5, 4.5, 400)])[:, None]
    weight = np.where(x[:, 0] > 3.2, -1.0, 1.0)
    result, report = positive_weights(sample(x, np.zeros((4400, 0)), weight), names=("x",))
    assert report.clipped_fraction == pytest.approx(400 / 4400, abs=0.02)
    assert report.clipped_region["x"][0] > 2.0 and report.clipped_region["x"][1] > 4.4
    assert (result[x[:, 0] > 3.5] == 0).all()


def test_positive_samples_pass_unchanged_and_hopeless_ones_are_refused() -> None:
    mixture = signed_mixture(600, 1)
    plain = mixture._replace(weight=np.full(600, 2.0))
    assert np.array_equal(positive_weights(plain)[0], plain.weight)
    with pytest.raises(UserError, match="sum to -600"):
        positive_weights(mixture._replace(weight=-np.ones(600)))


def test_matching_gives_the_spectrum_of_the_data_and_leaves_conditions_alone() -> None:
    """Weighted deciles of pt and |eta| against the data: 5 binomial standard deviations of the smaller sample."""
    roles = truth.roles()
    sim, data = (sample_of(truth.draw(kind, 8000, 5), roles, ["EB", "EE"]) for kind in ("sim", "data"))
    before = sim.conditions.copy()
    weight, ratio, report = matching_weights(sim, data, np.ones(8000), np.ones(8000), 2, names=("pt", "eta"))
    assert np.array_equal(sim.conditions, before)
    assert report.clipped_fraction == 0 and 0.7 < report.effective_after / 8000 < 1
    error = 5 * np.sqrt(0.25 * (1 / 8000 + 1 / report.effective_after))
    worst_before = 0.0
    for j, transform in ((0, np.asarray), (1, np.abs)):
        edges = np.quantile(transform(data.conditions[:, j]), np.linspace(0.1, 0.9, 9))
        for edge in edges:
            below = transform(sim.conditions[:, j]) < edge
            wanted = (transform(data.conditions[:, j]) < edge).mean()
            assert abs(np.average(below, weights=weight) - wanted) < error
            worst_before = max(worst_before, abs(below.mean() - wanted))
    assert worst_before > 2 * error
    again, _, _ = matching_weights(sim, data, np.ones(8000), np.ones(8000), 2, ratio=ratio)
    assert np.corrcoef(again, weight)[0, 1] > 0.9


def test_equal_spectra_need_no_weights() -> None:
    roles = truth.roles()
    one, two = (sample_of(truth.draw("sim", 3000, seed), roles, ["EB", "EE"]) for seed in (1, 2))
    _, _, report = matching_weights(one, two, np.ones(3000), np.ones(3000), 2)
    assert report.effective_after / 3000 > 0.95


def test_trees_as_arrays_equal_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    x = rng.normal(size=(2000, 3))
    label = rng.uniform(size=2000) < 1 / (1 + np.exp(-x[:, 0] * x[:, 1]))
    fits = [boosted_trees(x, label, np.ones(2000), seed=seed, iterations=30) for seed in (0, 1)]
    ensemble = TreeEnsemble.of(*fits)
    expected = np.mean([fit.decision_function(x) for fit in fits], axis=0)
    np.testing.assert_allclose(ensemble(x), expected, atol=1e-12)
    rebuilt = TreeEnsemble(**ensemble.recorded_arguments)
    rebuilt.load_state_dict(ensemble.state_dict())
    assert np.array_equal(rebuilt(x[::-1]), ensemble(x)[::-1])


def test_folds_and_bootstrap_belong_to_the_event() -> None:
    """Fold sizes and Poisson moments within 5 standard deviations; the same numbers in any order."""
    event = np.arange(20_000, dtype=np.int64) * 7919 + 11
    event[::3] *= -1
    fold, count = fold_of(event, 4), poisson(event, 1, "bootstrap data")
    assert np.abs(np.bincount(fold) - 5000).max() < 5 * np.sqrt(20_000 * 3 / 16)
    assert abs(count.mean() - 1) < 5 / np.sqrt(20_000) and abs(count.var() - 1) < 5 * np.sqrt(3 / 20_000)
    order = np.random.default_rng(0).permutation(20_000)
    assert np.array_equal(fold_of(event[order], 4), fold[order])
    assert np.array_equal(poisson(event[order], 1, "bootstrap data"), count[order])
    assert not np.array_equal(poisson(event, 2, "bootstrap data"), count)
    assert torch.equal(torch.from_numpy(fold_of(event, 1)), torch.zeros(20_000, dtype=torch.int64))
