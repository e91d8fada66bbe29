"""The certificate of the shipped prior on the embedded scan, right and wrong."""

from __future__ import annotations

import numpy as np
import pytest
from sciflow_mri.data import make_scan, prepare, read
from sciflow_mri.demo import embedded
from sciflow_mri.model.shipped import shipped_prior, shipped_sizes
from sciflow_mri.posterior.acquisition import Acquisition, acquire
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.sensitivity import sensitivity_tests, with_maps


@pytest.fixture(scope="module")
def prior():
    return shipped_prior(64)


@pytest.fixture(scope="module")
def scan():
    return prepare(read(embedded()[0])[0])


def residual(prior, acquisition: Acquisition) -> tuple[str, float]:
    found = default_sampler(prior, states=0)(acquisition.problem(prior), 4, progress=False)
    test = next(test for test in found.certificate.tests if test.name == "data residual")
    return test.outcome, test.value


def test_priors_are_small_and_say_what_they_are() -> None:
    assert shipped_sizes() == [64, 128]
    for size in shipped_sizes():
        flow = shipped_prior(size)
        assert tuple(flow.event_shape) == (2, size, size) and 0.2 < flow.network.data_scale < 0.6


def test_the_scan_as_it_is_passes(prior, scan) -> None:
    outcome, value = residual(prior, acquire(scan))
    assert outcome == "passed", value


def test_half_of_the_noise_fails(prior, scan) -> None:
    known = acquire(scan)
    outcome, value = residual(prior, acquire(scan, sigma=float(known.sigma.mean()) / 2))
    assert outcome == "failed" and value > 1.4


def test_lines_that_are_elsewhere_fail(prior, scan) -> None:
    """Four of the eight outer lines are said to be their neighbours."""
    mask, kspace = scan["mask"].values.copy(), scan["kspace"].values.copy()
    for line in [number for number in np.flatnonzero(mask) if not 28 <= number < 36][:4]:
        other = line + 1 if not mask[line + 1] else line - 1
        kspace[:, :, other], mask[other] = kspace[:, :, line], True
        kspace[:, :, line], mask[line] = 0, False
    outcome, value = residual(prior, acquire(make_scan(kspace, mask=mask)))
    assert outcome == "failed" and value > 1.5


def test_maps_of_other_coils_fail(prior, scan) -> None:
    known = acquire(scan)
    swapped = with_maps(known, known.maps[[1, 0, 2, 3, 4, 5, 6, 7]])
    explained = sensitivity_tests(swapped, prior, rows=2)[0]
    assert explained.name == "calibration explained by maps" and explained.outcome == "failed"
