"""The sampler behind a parallel acquisition, against a posterior in closed form."""

from __future__ import annotations

import pytest
import torch
from sciflow_mri.posterior.exact_case import ExactCase, exact_case_tests

from sciflow.posterior.randomness import Randomness
from sciflow.posterior.samplers import AnnealedLangevin


def test_the_closed_form_is_that_of_brute_force() -> None:
    """Importance of nothing: the joint normal of (x, y), conditioned by the textbook formula on an explicit matrix."""
    case = ExactCase(size=4, coils=2, acceleration=2.0, sigma=0.3)
    matrix = case.operator.matrix()  # real and imaginary parts of y apart
    s = case.covariance
    data = matrix @ s @ matrix.T + torch.eye(len(matrix), dtype=torch.float64)
    clean = case.operator(case.mean.reshape(1, 2, 4, 4))[0]
    gap = torch.view_as_real(case.y - clean)
    for order in (gap.flatten(), gap.movedim(-1, 0).flatten()):  # whichever way the matrix stacks the parts
        mean = case.mean + s @ matrix.T @ torch.linalg.solve(data, order)
        if torch.allclose(mean, case.closed_form()[0], atol=1e-9):
            break
    else:
        pytest.fail("the means differ")
    covariance = s - s @ matrix.T @ torch.linalg.solve(data, matrix @ s)
    torch.testing.assert_close(case.closed_form()[1], covariance, atol=1e-9, rtol=0)


def test_the_velocity_is_that_of_the_prior() -> None:
    """D(x, s) of the flow against C (C + s^2)^-1 (x - m) + m."""
    case = ExactCase(size=4, coils=2)
    from sciflow.posterior.samplers.noisy_posterior import NoisyPosterior

    x = Randomness(0, "test", dtype=torch.float64).normal(3, (2, 4, 4))
    found = NoisyPosterior(case.problem).denoised(x, 0.5).flatten(1)
    gain = case.covariance @ torch.linalg.inv(case.covariance + 0.25 * torch.eye(32, dtype=torch.float64))
    torch.testing.assert_close(found, case.mean + (x.flatten(1) - case.mean) @ gain.T)


@pytest.mark.parametrize(("coils", "acceleration", "sigma"), [(3, 2.0, 0.1), (4, 4.0, 0.05), (2, 2.0, 0.3)])
def test_mean_and_covariance_are_those_of_the_closed_form(coils, acceleration, sigma) -> None:
    """Default levels; each figure is allowed five standard errors beside the stated bias."""
    sampler = AnnealedLangevin(0.36, states=0)
    tests = exact_case_tests(sampler, draws=1000, coils=coils, acceleration=acceleration, sigma=sigma)
    assert [test.outcome for test in tests] == ["passed"] * 3 + ["reported"], tests


@pytest.mark.slow
def test_more_moves_leave_nothing_but_chance() -> None:
    """Four times the moves: the mean of 4000 draws is off by its standard error (1/63) up to 5 of its own, without bias."""
    sampler = AnnealedLangevin(0.36, levels=((0.4, 8), (0.2, 8), (0.12, 12), (0.07, 60)), states=0)
    mean, variance, covariance, _ = exact_case_tests(sampler, draws=4000)
    assert abs(mean.value * 4000**0.5 - 1) < 5 * (2 / 128) ** 0.5 / 2 and abs(variance.value - 1) < 0.01
    assert covariance.value < 1.1 / 4000**0.5


def test_it_fails_for_samplers_that_are_wrong() -> None:
    """No fine levels to speak of; and a sampler that thinks the data twice as large."""
    hasty = AnnealedLangevin(0.36, coarse=1, levels=((0.07, 1),), states=0)
    assert "failed" in [test.outcome for test in exact_case_tests(hasty, draws=300)]
    case = ExactCase(size=4, coils=2)
    assert case.closed_form(blur=0.0)[1].trace() < case.closed_form(blur=0.2)[1].trace()
