"""What the tests of an acquisition see: lines that do not belong together, maps of other coils, damaged scans."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from sciflow_mri.model.prior import image_flow
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics import line_mask
from sciflow_mri.posterior.acquisition import Acquisition, acquire
from sciflow_mri.posterior.consistency import LineModel
from sciflow_mri.posterior.features import SCAN_FEATURES, calibration, scan_features
from sciflow_mri.posterior.observation import (
    Features,
    ObservationModel,
    fit_observation,
    flagged,
    observation_features,
    observation_look,
    observation_tests,
)  # fmt: skip
from sciflow_mri.posterior.prior_features import PRIOR_FEATURES, network_width, prior_features
from sciflow_mri.posterior.sensitivity import other_maps, sensitivity_tests, with_maps

from sciflow.errors import UserError
from sciflow.transport import TransportFlow

SIZE = 32


@pytest.fixture(scope="module")
def prior() -> TransportFlow:
    torch.manual_seed(0)
    return image_flow(SIZE, widths=(8, 16), blocks=1).eval()


def image(seed: int) -> torch.Tensor:
    """Blobs in a disc, of smooth phase."""
    generator = torch.Generator().manual_seed(seed)
    u = torch.linspace(-1, 1, SIZE)
    disc = ((u.unsqueeze(1) / 0.8) ** 2 + (u / 0.7) ** 2 < 1).float()
    smooth = torch.nn.functional.avg_pool2d(torch.rand(1, SIZE + 6, SIZE + 6, generator=generator), 7, 1)[0]
    magnitude = disc * (0.4 + 3 * (smooth - smooth.min()))
    phase = torch.rand(1, generator=generator) * 6 + u.unsqueeze(1) * torch.randn(1, generator=generator)
    return torch.stack([magnitude * phase.cos(), magnitude * phase.sin()])


def acquisition(seed: int, coils: int = 6, rate: float = 2.0) -> Acquisition:
    return acquire(simulated_scan(image(seed), line_mask(SIZE, rate, 8, seed=seed), coils=coils, seed=seed)[0])


def test_predictions_of_lines_are_those_of_brute_force() -> None:
    """The Woodbury form against conditioning with the whole covariance of one image column."""
    found = acquisition(0, coils=2)
    model = LineModel(found)
    column, line = 13, 5
    eye = torch.eye(SIZE**2, dtype=torch.float64).reshape(-1, 1, SIZE, SIZE)
    pixels = (torch.arange(SIZE) * SIZE + column).tolist()
    basis = torch.cat([eye[pixels], torch.zeros(SIZE, 1, SIZE, SIZE)], 1)
    seen = found.operator(basis)
    turned = torch.fft.fftshift(torch.fft.ifft(torch.fft.ifftshift(seen, dim=-1), norm="ortho"), dim=-1)[..., column]
    a = turned.permute(2, 1, 0).reshape(-1, SIZE).to(torch.complex128)  # (line coil, y)
    k = torch.arange(SIZE) - SIZE // 2
    transform = torch.exp(-2j * torch.pi * torch.outer(k, k).double() / SIZE) / SIZE**0.5
    power = (1.0 + k.abs().double()) ** -2
    power = 2 * 0.36**2 * power / power.mean()
    kernel = a @ transform.mH @ torch.diag(power).to(a) @ transform @ a.mH + 2 * torch.eye(len(a))
    data = model.data[:, :, column].reshape(-1).to(a)
    mine = torch.arange(2 * line, 2 * line + 2)
    rest = torch.tensor([i for i in range(len(a)) if i not in mine])
    gain = kernel[mine][:, rest] @ torch.linalg.inv(kernel[rest][:, rest])
    error = data[mine] - gain @ data[rest]
    torch.testing.assert_close(model.error[line, :, column].to(a), error, atol=1e-4, rtol=1e-3)
    left = kernel[mine][:, mine] - gain @ kernel[rest][:, mine]
    surprise = (error.conj() @ torch.linalg.solve(left, error)).real / 2
    assert float(model.surprise[line, column]) == pytest.approx(float(surprise), rel=1e-3)


def test_features_are_finite_and_named(prior) -> None:
    found = acquisition(0)
    assert scan_features(found).shape == (len(SCAN_FEATURES),) and bool(scan_features(found).isfinite().all())
    numbers, pooled = prior_features([found, acquisition(1)], prior)
    assert numbers.shape == (2, len(PRIOR_FEATURES)) and pooled.shape == (2, network_width(prior))
    alone = prior_features([found], prior)
    torch.testing.assert_close(numbers[:1], alone[0], atol=5e-2, rtol=0)  # bfloat16 products of other batches


def test_the_scale_of_k_space_does_not_matter() -> None:
    """The unit of the file is arbitrary."""
    scan, _ = simulated_scan(image(0), line_mask(SIZE, 2, 8, seed=0), coils=6, seed=0)
    thousand = scan.assign(kspace=scan["kspace"] * 1000)
    torch.testing.assert_close(scan_features(acquire(scan)), scan_features(acquire(thousand)), atol=1e-2, rtol=1e-3)


def test_lines_that_hold_nothing_and_spikes_are_noticed() -> None:
    names = list(SCAN_FEATURES)
    good = acquisition(0)
    kspace = good.kspace.clone()
    (first, end), _ = calibration(good)
    others = [int(line) for line in good.mask.nonzero()[:, 0] if not first <= int(line) < end]
    kspace[:, others[0]] = 1e-3 * kspace[:, others[0]]
    empty = rebuilt(good, kspace)
    assert scan_features(empty)[names.index("quietest line")] < scan_features(good)[names.index("quietest line")] - 3
    kspace = good.kspace.clone()
    kspace[:, others[0], 3] += 0.3 * kspace.abs().max()
    spiked = rebuilt(good, kspace)
    entry = names.index("most surprising entry")
    assert scan_features(spiked)[entry] > scan_features(good)[entry] + 0.5


def rebuilt(found: Acquisition, kspace: torch.Tensor) -> Acquisition:
    return replace(found, kspace=kspace, y=found.operator.whiten(found.operator.measured(kspace[None] / found.scale))[0])


def test_the_whole_way_from_people_to_a_flag(prior) -> None:
    """Images of the fitted kind pass, an image of noise does not; the tests name what deviates."""
    people = {
        name: observation_features([acquisition(100 * k + i, coils=4) for i in range(50)], prior) for k, name in enumerate("ab")
    }
    fitted = fit_observation(people, (SIZE, SIZE))
    tests = observation_tests(acquisition(1000, coils=4), fitted, prior)
    assert not flagged(tests) and [test.outcome for test in tests] == ["passed", "passed", *["reported"] * 3], tests
    noise = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    strange = acquire(simulated_scan(noise, line_mask(SIZE, 2, 8, seed=0), coils=4, seed=0)[0])
    tests = observation_look(fitted, prior, lambda _: [])(strange)
    assert flagged(tests) and "deviations" in tests[0].description
    with pytest.raises(UserError, match="another prior"):
        observation_tests(strange, fitted, image_flow(SIZE, widths=(8,), blocks=1))
    with pytest.raises(UserError, match="fit it again"):
        observation_tests(strange, ObservationModel((64, 64), 4), prior)


def test_maps_of_other_coils_fail(prior) -> None:
    """Coils in another order: most of the calibration energy is unexplained."""
    good = acquisition(0)
    share, change, half = sensitivity_tests(good, prior, rows=3)
    assert change.severity == "fail" and half.severity == "warn"
    assert share.outcome == "passed" and change.value > 0
    swapped = with_maps(good, good.maps[[1, 0, 3, 2, 5, 4]])
    assert sensitivity_tests(swapped, prior, rows=3)[0].outcome == "failed"
    assert [name for name, _ in other_maps(good)] == ["kernel 3 x 5", "4 calibration lines"]
    with pytest.raises(UserError, match="maps"):
        with_maps(good, good.maps[:2])
    with pytest.raises(ValueError, match="std has shape"):
        sensitivity_tests(good, prior, std=torch.ones(3, 3))


def test_the_change_is_in_units_of_the_standard_deviation(prior) -> None:
    good = acquisition(0)
    narrow, wide = (sensitivity_tests(good, prior, std=torch.full((SIZE, SIZE), s), rows=3)[1].value for s in (1e-3, 1e-4))
    assert wide == pytest.approx(10 * narrow, rel=1e-3)


def test_masks_of_points_and_foreign_priors_are_refused(prior) -> None:
    mask = torch.rand(SIZE, SIZE, generator=torch.Generator().manual_seed(0)) < 0.4
    mask[11:21, 11:21] = True
    points = acquire(simulated_scan(image(0), mask, coils=4, seed=0)[0])
    (test,) = observation_tests(points, ObservationModel((SIZE, SIZE), network_width(prior)), prior)
    assert test.outcome == "not evaluated" and not flagged([test])
    with pytest.raises(UserError, match="one of points"):
        scan_features(points)
    with pytest.raises(UserError, match="without a U-Net"):
        network_width(torch.nn.Linear(1, 1))
    with pytest.raises(UserError, match="crop the scan"):
        prior_features([points], image_flow(16, widths=(8,), blocks=1))
    assert Features._fields == ("given", "scan", "prior", "network")
