"""Distances in feature space: known answers, and what a saved model keeps."""

from __future__ import annotations

import math

import pytest
import torch
from sciflow_mri.posterior.distance import FeatureDistance
from sciflow_mri.posterior.features import COVARIATES, SCAN_FEATURES
from sciflow_mri.posterior.observation import Features, fit_observation, flagged
from sciflow_mri.posterior.prior_features import PRIOR_FEATURES

import sciflow
from sciflow.certificate import Test
from sciflow.errors import UserError


def normal(rows: int, columns: int, seed: int) -> torch.Tensor:
    return torch.randn(rows, columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def features(rows: int, seed: int, shift: float = 0.0) -> Features:
    given = normal(rows, len(COVARIATES), seed)
    parts = [normal(rows, count, seed + k + 1) for k, count in enumerate((len(SCAN_FEATURES), len(PRIOR_FEATURES), 90))]
    parts = [part + given @ torch.ones(len(COVARIATES), part.shape[1], dtype=torch.float64) + shift for part in parts]
    return Features(given, *parts)


def test_of_a_normal_it_is_the_mahalanobis_distance() -> None:
    """60,000 rows of a known covariance that depend on a covariate: log sqrt(d' S^-1 d / F), to 2 %."""
    mix = torch.tensor([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [0.3, -0.2, 0.1]], dtype=torch.float64)
    given = normal(60_000, 1, 1)
    rows = normal(60_000, 3, 0) @ mix.T + 3 * given
    distance = FeatureDistance(3, 1).fit(rows, given)
    point, at = torch.tensor([[1.0, -2.0, 4.0]], dtype=torch.float64), torch.tensor([[0.5]], dtype=torch.float64)
    left = point[0] - 1.5
    wanted = 0.5 * torch.log(left @ torch.linalg.solve(mix @ mix.T, left) / 3)
    torch.testing.assert_close(distance(point, at)[0], wanted, atol=0.02, rtol=0)


def test_wide_features_keep_a_finite_distance() -> None:
    """More features than rows: held-out rows of the same distribution have a log-distance a little above 0, others more."""
    rows = normal(60, 300, 0)
    distance = FeatureDistance(300, 0).fit(rows, rows[:, :0])
    held, far = normal(200, 300, 1), normal(200, 300, 2) + 1
    assert 0 < float(distance(held, held[:, :0]).mean()) < 0.6
    assert float(distance(far, far[:, :0]).min()) > float(distance(held, held[:, :0]).max())


def test_covariates_beyond_what_was_seen_do_not_extrapolate() -> None:
    given = normal(200, 1, 0)
    rows = given + 0.1 * normal(200, 2, 1)
    distance = FeatureDistance(2, 1).fit(rows, given)
    top = given.max().reshape(1, 1)
    point = top.expand(1, 2)
    torch.testing.assert_close(distance(point, top + 100), distance(point, top))


def test_the_threshold_holds_on_a_third_person() -> None:
    """Same distribution: of 1000 scans at the 99 % quantile of 400 scores 1 % are flagged; more than 3.5 % in 1 of 10,000."""
    model = fit_observation({"a": features(200, 10), "b": features(200, 20)}, (8, 8))
    assert float((model.score(features(1000, 30)) > model.threshold).double().mean()) < 0.035
    assert model.warning < model.threshold
    assert float((model.score(features(200, 40, shift=2.0)) > model.threshold).double().mean()) > 0.99


def test_values_that_are_not_finite_are_infinitely_far() -> None:
    model = fit_observation({"a": features(100, 10), "b": features(100, 20)}, (8, 8))
    bad = features(3, 30)
    bad.scan[1, 0] = math.nan
    assert model.score(bad)[1] == math.inf and model.score(bad)[0] < math.inf


def test_saved_and_loaded(tmp_path) -> None:
    model = fit_observation({"a": features(100, 10), "b": features(100, 20)}, (8, 8))
    again = sciflow.load(sciflow.save(model, tmp_path / "test"), trust=("sciflow_mri",))
    new = features(5, 30)
    torch.testing.assert_close(again.score(new), model.score(new))
    assert again.threshold == model.threshold and again.size == (8, 8)
    assert sum(file.stat().st_size for file in (tmp_path / "test").iterdir()) < 1e6


def test_refusals() -> None:
    with pytest.raises(UserError, match="at least two"):
        fit_observation({"a": features(200, 1)}, (8, 8))
    with pytest.raises(UserError, match="cannot fix a quantile"):
        fit_observation({"a": features(30, 1), "b": features(30, 2)}, (8, 8))
    with pytest.raises(UserError, match="good rows"):
        FeatureDistance(2, 0).fit(torch.full((50, 2), math.nan), torch.zeros(50, 0))


def test_flags() -> None:
    good = Test("acquisition like those of the prior", 1.0, 3.0, "<=")
    assert not flagged([good]) and flagged([Test(good.name, math.inf, 3.0, "<=")]) and not flagged([])
