"""Coverage and the inflation that repairs it, where both are known."""

from __future__ import annotations

import math

import pytest
import torch
from sciflow_mri.posterior import coverage as module
from sciflow_mri.posterior.coverage import CoverageCalibration, calibrate_coverage, coverage, inflated, intervals

import sciflow
from sciflow.errors import UserError


def drawn(width: float, seed: int, draws: int = 63, size: int = 100) -> tuple[torch.Tensor, torch.Tensor]:
    """Truth and draws around the same centres, the draws `width` times as wide as the truth scatters."""
    generator = torch.Generator().manual_seed(seed)
    centre = 2 + torch.rand(size, size, generator=generator)
    truth = centre + 0.1 * torch.randn(size, size, generator=generator)
    return centre + 0.1 * width * torch.randn(draws, size, size, generator=generator), truth


@pytest.mark.parametrize("draws", [19, 63])
def test_intervals_of_exchangeable_draws_cover_what_they_say(draws) -> None:
    """10,000 pixels: standard error .005, five of them allowed; the naive quantiles of 19 draws miss by .05."""
    found = coverage(*drawn(1.0, 0, draws))
    torch.testing.assert_close(found, torch.tensor([0.5, 0.8, 0.9], dtype=torch.float64), atol=0.025, rtol=0)


def test_narrow_draws_cover_less_as_the_normal_says() -> None:
    """Truth 1.4 times as wide as the draws: P(|z| < z_p / 1.4)."""
    found = coverage(*drawn(1 / 1.4, 0, draws=200))
    wanted = [math.erf(z / 1.4 / 2**0.5) for z in (0.6745, 1.2816, 1.6449)]
    torch.testing.assert_close(found, torch.tensor(wanted, dtype=torch.float64), atol=0.025, rtol=0)


def test_inflation_scales_the_deviation_around_the_mean() -> None:
    rows = 5 + torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    wide = inflated(rows, 1.5)
    torch.testing.assert_close(wide.mean(0), rows.mean(0))
    torch.testing.assert_close(wide.std(0), 1.5 * rows.std(0))
    assert bool((inflated(rows - 5, 3.0) >= 0).all())


def test_air_does_not_count() -> None:
    magnitude, truth = drawn(1.0, 0, draws=19, size=10)
    truth[5:] = 0.0
    assert torch.equal(coverage(magnitude, truth), coverage(magnitude[:, :5], truth[:5]))


def test_the_factor_is_found_and_crossed_between_people(monkeypatch) -> None:
    """Draws 1/1.4 and 1/1.2 as wide: factors 1.4 and 1.2, each tried on the other; their mean is kept. Beforehand .57 of .9."""
    monkeypatch.setattr(module, "_drawn", lambda prior, scan, *rest: scan)
    people = {"a": [drawn(1 / 1.4, seed, size=60) for seed in (1, 2)], "b": [drawn(1 / 1.2, seed, size=60) for seed in (3, 4)]}
    found = calibrate_coverage(None, people, draws=63, sampler=object())
    torch.testing.assert_close(found.factors, torch.tensor([1.4, 1.2], dtype=torch.float64), atol=0.08, rtol=0)
    assert abs(float(found.inflation) - 1.3) < 0.05
    assert bool((found.repaired[0] > found.raw[0]).all()) and bool((found.repaired[1] > 0.5).all())
    torch.testing.assert_close(found.repaired[0], coverage(*people["a"][0], factor=float(found.factors[1])), atol=0.04, rtol=0)


def test_what_the_certificate_shows() -> None:
    found = CoverageCalibration(("a", "b"), 3, 64)
    found.raw.copy_(torch.tensor([[0.44, 0.75, 0.85]] * 2))
    found.repaired.copy_(torch.tensor([[0.49, 0.8, 0.95]] * 2))
    found.error.fill_(0.01)
    outcomes = {test.name: test.outcome for test in found.tests()}
    assert outcomes["coverage of 50 % intervals, raw"] == "passed"
    assert outcomes["coverage of 90 % intervals, inflated"] == "warned"
    assert outcomes["inflation"] == "reported"


def test_saved_as_buffers_and_as_json(tmp_path) -> None:
    found = CoverageCalibration(("a", "b"), 3, 64)
    found.raw.copy_(torch.rand(2, 3, dtype=torch.float64))
    found.inflation.fill_(1.15)
    again = sciflow.load(sciflow.save(found, tmp_path / "model"), trust=("sciflow_mri",))
    assert torch.equal(again.raw, found.raw) and again.people == ("a", "b") and float(again.inflation) == pytest.approx(1.15)
    from sciflow.strict_json import loads

    content = loads(found.write(tmp_path / "coverage.json").read_text())
    assert content["inflation"] == pytest.approx(1.15) and content["raw"] == found.raw.tolist()


def test_refusals(monkeypatch) -> None:
    monkeypatch.setattr(module, "_drawn", lambda prior, scan, *rest: scan)
    with pytest.raises(UserError, match="as many"):
        calibrate_coverage(None, {"a": [drawn(1.0, 0)], "b": []}, sampler=object())
    with pytest.raises(UserError, match="give 19 or more"):
        calibrate_coverage(None, {"a": [drawn(1.0, 0)]}, draws=18, sampler=object())
    assert intervals(torch.arange(3.0), [0.9]).flatten().tolist() == [0.0, 2.0]
