"""Calibration without ground truth, where the answer is known: normal images, whose covariances say all there is."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from sciflow_mri.model.calibration import (
    CoilModel,
    FlowMatch,
    Whitening,
    affine_curvature,
    affine_slope,
    calibrate,
    covariance,
    flow_slope,
    moments,
    place_flow,
)
from sciflow_mri.model.calibration.velocity import complex_rows, real_rows
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.physics.fourier import to_kspace
from torch import Tensor

SIZE, COILS, BLOCK, COLUMNS, SIGMA = 12, 3, (3, 9), (3, 9), 0.1


def maps() -> Tensor:
    return torch.from_numpy(coil_maps(COILS, SIZE, np.random.default_rng(3)))


def model(**options: object) -> CoilModel:
    return CoilModel(maps(), BLOCK, columns=COLUMNS, **{"degree": 1, **options})  # type: ignore[arg-type]


def root() -> Tensor:
    """L with Sigma = L L', the covariance of real and imaginary part each of a smooth blob-shaped field (pixels, pixels)."""
    place = torch.cartesian_prod(*[torch.arange(SIZE, dtype=torch.float64)] * 2)
    near = torch.exp(-torch.cdist(place, place).square() / (2 * 1.5**2)) + 1e-6 * torch.eye(SIZE**2)
    blob = torch.exp(-(place - (SIZE - 1) / 2).square().sum(1) / (2 * 3.0**2))
    return torch.linalg.cholesky(near * blob.outer(blob) + 1e-9 * torch.eye(SIZE**2))


def exact_images() -> Tensor:
    """Images whose sample covariance is Sigma to the last digit: the columns of L."""
    columns = root().T * (2 * SIZE**2) ** 0.5
    return columns.reshape(-1, SIZE, SIZE).to(torch.complex128)


def drawn(count: int, seed: int) -> Tensor:
    """Normal images (count, 2, y, x)."""
    rng = np.random.default_rng((seed, 7))
    return (torch.from_numpy(rng.normal(size=(count, 2, SIZE**2))) @ root().T).reshape(count, 2, SIZE, SIZE)


def truth(of: CoilModel, sigma: float = SIGMA, scale: float = 0.2) -> Tensor:
    theta = of.start(sigma)
    theta[1 + of.terms :] = scale * torch.from_numpy(np.random.default_rng(5).normal(size=of.count - 1 - of.terms))
    return theta


def scanned(of: CoilModel, theta: Tensor, images: Tensor, seed: int) -> Tensor:
    """k-space (N, C, H, W) of images (N, 2, H, W) by whole transforms, not by the model's narrow ones."""
    rng = np.random.default_rng((seed, 11))
    x = torch.complex(images[:, 0], images[:, 1]).to(torch.complex128)
    white = torch.from_numpy(rng.normal(size=(2, len(x), COILS, SIZE, SIZE)))
    return to_kspace(of.maps_at(theta, common=True) * x.unsqueeze(1)) + theta[0].exp() * torch.complex(white[0], white[1])


def whitened(of: CoilModel, theta: Tensor, by: Whitening) -> tuple[Tensor, Tensor]:
    found = moments(of, exact_images(), theta)
    return by.covariance(found.covariance), by.covariance(found.slopes)


def exact_whitening(of: CoilModel, theta: Tensor) -> Whitening:
    """By the closed-form covariance."""
    values, bases = torch.linalg.eigh(moments(of, exact_images(), theta).covariance)
    return Whitening(values.rsqrt().unsqueeze(-1) * bases.mH, values)


def test_covariance_of_normal_images_is_that_of_the_dense_matrices() -> None:
    """K = A Sigma A' + sigma^2 with A written out as matrices."""
    of = model()
    theta = truth(of)
    theta[1:4] = torch.tensor([0.1, -0.2, 0.3])
    whole, small = fourier_matrix(SIZE), fourier_matrix(BLOCK[1] - BLOCK[0])
    side = small.mH @ whole[BLOCK[0] : BLOCK[1]]
    narrow = torch.kron(side, side)
    sigma = (root() @ root().T).to(torch.complex128)
    rows = torch.stack([narrow * each.flatten() for each in of.maps_at(theta, common=True)], 1)  # (places, coils, pixels)
    dense = rows @ sigma @ rows.mH + SIGMA**2 * torch.eye(COILS)
    assert torch.allclose(moments(of, exact_images(), theta).covariance, dense, atol=1e-10)


def test_slopes_of_the_covariance_are_its_derivatives() -> None:
    of = model()
    theta = truth(of)
    found = moments(of, exact_images(), theta).slopes
    for number in range(of.count):
        step = torch.zeros_like(theta)
        step[number] = 1e-5
        up, down = (moments(of, exact_images(), theta + sign * step).covariance for sign in (1, -1))
        assert torch.allclose((up - down) / 2e-5, found[number], atol=1e-7)


def test_loss_for_normal_vectors_by_hand() -> None:
    """`affine_slope` is the derivative of the integrated divergence, 0 at equal covariances; `affine_curvature` the second."""
    of = model()
    true = truth(of)
    by = exact_whitening(of, true)

    def loss(theta: Tensor) -> Tensor:
        t = (torch.arange(800, dtype=torch.float64) + 0.5)[:, None, None] / 800
        values = torch.linalg.eigvalsh(whitened(of, theta, by)[0])
        ratio = (t**2 * values + (1 - t) ** 2) / (t**2 + (1 - t) ** 2)
        return ((1 - t) / t**2 * (ratio - ratio.log() - 1)).sum() / 800

    other = true + 0.2
    slope = affine_slope(*whitened(of, other, by))
    for number in range(of.count):
        step = torch.zeros_like(true)
        step[number] = 1e-4
        assert float(slope[number]) == pytest.approx(float(loss(other + step) - loss(other - step)) / 2e-4, rel=1e-4, abs=1e-5)
    assert float(affine_slope(*whitened(of, true, by)).abs().max()) < 1e-8
    step = torch.zeros_like(true)
    step[4] = 1e-3
    second = float(affine_slope(*whitened(of, true + step, by))[4] - affine_slope(*whitened(of, true - step, by))[4]) / 2e-3
    assert float(affine_curvature(*whitened(of, true, by))[4, 4]) == pytest.approx(second, rel=1e-3)


def test_slope_by_flows_is_that_of_the_loss() -> None:
    """E (w - v) . dz / d theta with the velocities of normal data, sampled: scores of 16 numbers, false alarm 1e-3."""
    of = model()
    true = truth(of)
    other = true + 0.15
    by = exact_whitening(of, true)
    w, v = (place_flow(COILS, torch.zeros(of.places, 1)) for _ in range(2))
    w.network.assume(whitened(of, other, by)[0])  # type: ignore[operator]
    draws = torch.stack([flow_slope(of, by, exact_images(), other, w, v, seed=seed) for seed in range(12)])
    score = (draws.mean(0) - affine_slope(*whitened(of, other, by))) / (draws.std(0) / 12**0.5)
    assert float(score.abs().max()) < 6.4  # Student's t with 11 degrees
    assert float((draws.mean(0).abs() / draws.std(0)).max()) > 2  # it has something to see


@pytest.mark.parametrize(("method", "resamples"), [("moments", 8), ("affine", 2), ("flow", 0)])
def test_noise_and_maps_are_found_within_their_error(method: str, resamples: int) -> None:
    """Unpaired normal images; sigma within four standard errors, maps up to a common factor."""
    of = model()
    true = truth(of)
    scans = scanned(of, true, drawn(150, 1), 1)
    options: dict[str, Any] = {"rounds": 4, "epochs": 4, "hidden": (32, 32)}
    found = calibrate(of, scans, drawn(150, 2), method=method, resamples=resamples, seed=3, **options)
    assert abs(found.sigma - SIGMA) < 4 * found.sigma_error < 0.4 * SIGMA
    a = of.coefficients(true)[1]
    assert float((found.mismatch - a).norm()) < 0.2 * float(a.norm())
    assert float(found.mismatch.sum(0).abs().max()) < 1e-12
    assert found.notes == () and found.misfit < 2
    assert len(found.path) == (0 if method == "moments" else 4)


def test_factor_common_to_all_coils_changes_nothing_else() -> None:
    """Scans of images times a smooth factor and a phase: the same mismatch, the same noise, another brightness."""
    of = model()
    true = truth(of)
    brighter = true.clone()
    brighter[1:4] = torch.tensor([0.3, 0.2, -0.2])
    images = drawn(200, 1)
    turned = torch.view_as_real(torch.complex(images[:, 0], images[:, 1]) * (0.6 + 0.8j)).movedim(-1, 1)
    first = calibrate(of, scanned(of, true, images, 1), drawn(200, 2), resamples=0)
    second = calibrate(of, scanned(of, brighter, turned, 1), drawn(200, 2), resamples=0)
    assert torch.allclose(second.common - first.common, brighter[1:4], atol=0.05)
    assert float((second.mismatch - first.mismatch).abs().max()) < 0.03
    assert second.sigma == pytest.approx(first.sigma, rel=0.02)


def test_right_maps_stay_what_they_are() -> None:
    """Without a mismatch the coefficients are zero within their errors: mean square of 9 scores, false alarm about 1e-3."""
    of = model()
    found = calibrate(of, scanned(of, of.start(SIGMA), drawn(150, 4), 4), drawn(150, 5), resamples=0)
    assert float((found.mismatch.abs() / found.mismatch_error).square().mean()) < 3
    assert float((found.maps - of.maps).norm() / of.maps.norm()) < 0.05


def test_loud_signal_in_one_coil_hides_the_noise() -> None:
    of = CoilModel(maps()[:1], BLOCK, columns=COLUMNS, degree=0)
    images = drawn(60, 1) + 3 * torch.from_numpy(np.random.default_rng(2).normal(size=(60, 2, SIZE, SIZE)))
    scans = to_kspace(torch.complex(images[:, 0], images[:, 1]).unsqueeze(1) * of.maps)
    found = calibrate(of, scans + 1e-3, drawn(60, 3) + images.flip(0), resamples=0)
    assert any("noise level cannot be told" in note for note in found.notes)


def test_silent_images_say_nothing_of_maps() -> None:
    of = model()
    faint = 1e-5 * drawn(60, 1)
    found = calibrate(of, scanned(of, truth(of), faint, 1), 1e-5 * drawn(60, 2), resamples=0)
    assert any("12 of 12 directions of the map mismatch cannot be told" in note for note in found.notes)
    assert found.sigma == pytest.approx(SIGMA, rel=0.03)


def test_images_of_another_kind_are_noticed() -> None:
    of = model()
    white = torch.from_numpy(np.random.default_rng(2).normal(size=(200, 2, SIZE, SIZE)))
    found = calibrate(of, scanned(of, truth(of), drawn(200, 1), 1), white, resamples=0)
    assert any("does not explain the scans" in note for note in found.notes)


def test_networks_see_what_is_not_normal() -> None:
    """Coil vectors of constant size and random phase: flow matching beats the best affine velocity."""
    of = CoilModel(torch.ones(1, 4, 4, dtype=torch.complex64), (1, 3), columns=(1, 3), degree=0)
    z = torch.full((2000, of.places, 1), math.sqrt(2), dtype=torch.complex128)
    match = FlowMatch(of, Whitening(torch.ones(of.places, 1, 1), torch.ones(of.places, 1)), hidden=(32, 32))
    flow = match._fresh()
    match._learn(flow, z, 10, 0)
    turn = torch.rand(2000, 1, generator=torch.Generator().manual_seed(0)) * 2 * torch.pi
    x1 = math.sqrt(2) * torch.cat([turn.cos(), turn.sin()], 1)
    x0 = torch.randn(2000, 2, generator=torch.Generator().manual_seed(1))
    t = torch.full((2000,), 0.7)
    xt, place = 0.7 * x1 + 0.3 * x0, torch.zeros(2000, 1)
    with torch.no_grad():
        affine = place_flow(1, torch.zeros(of.places, 1)).network(xt, t, place)[:, 0]
        learned = flow.network(xt, t, place)[:, 0]
    errors = [float((each - (x1 - x0)).square().mean()) for each in (affine, learned)]
    assert errors[1] < 0.95 * errors[0]


def test_rows_whitening_and_covariance_agree() -> None:
    rng = np.random.default_rng(0)
    vectors = torch.from_numpy(rng.normal(size=(40, 5, 3)) + 1j * rng.normal(size=(40, 5, 3)))
    by = Whitening.of(vectors)
    assert torch.allclose(covariance(by(vectors)), torch.eye(3, dtype=torch.complex128).expand(5, 3, 3), atol=1e-12)
    assert torch.allclose(by.covariance(covariance(vectors)), covariance(by(vectors)), atol=1e-12)
    assert bool((by.loudness.diff(dim=-1) <= 0).all())
    assert torch.equal(complex_rows(real_rows(vectors)), vectors)
