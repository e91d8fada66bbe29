"""What an amortised posterior is told: closed forms, what acquisitions have, nothing that a scan has not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from sciflow_mri.model.conditions import DATA_SCALE, condition_of, measured_operator, spectrum
from sciflow_mri.model.pairs import training_pairs
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.physics.sense import Sense
from sciflow_mri.posterior.acquisition import acquire
from torch import Tensor

from sciflow.errors import UserError

from .amortised_cases import scan


def images(count: int, size: int = 32, seed: int = 0) -> Tensor:
    """Discs of random level, place and phase."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size] / size - 0.5
    found = []
    for _ in range(count):
        picture = np.zeros((size, size), complex)
        for radius in (0.4, 0.25, 0.15, 0.1):
            a, b = rng.uniform(-0.1, 0.1, 2)
            picture += rng.uniform(0.2, 1) * ((y - a) ** 2 + (x - b) ** 2 < radius**2)
        picture *= np.exp(1j * (rng.uniform(0, 6) + 2 * x * rng.normal()))
        found.append(np.stack([picture.real, picture.imag]))
    return torch.from_numpy(np.stack(found)).float()


def test_damped_image_and_deviation_are_those_of_the_closed_form() -> None:
    """Against (A'A + Q)^-1 of the matrix of A over all pixels, double precision."""
    acquisition, _ = scan(0, dtype=torch.float64)
    condition, scale = condition_of(acquisition.operator, acquisition.y)
    fourier = fourier_matrix(8)
    power = (DATA_SCALE * scale) ** 2 * spectrum(8).double()
    column = torch.linalg.inv((fourier.mH * power.to(fourier)) @ fourier)  # precision of a column
    wide = torch.kron(column.contiguous(), torch.eye(8, dtype=column.dtype))  # rows of the image slowest
    precision = torch.cat([torch.cat([wide.real, -wide.imag], 1), torch.cat([wide.imag, wide.real], 1)])
    rows = torch.view_as_real(acquisition.operator(torch.eye(128, dtype=torch.float64).reshape(-1, 2, 8, 8))).flatten(1)
    covariance = torch.linalg.inv(rows @ rows.T + precision)
    mean = covariance @ (rows @ torch.view_as_real(acquisition.y).flatten())
    found = condition["images"]
    torch.testing.assert_close(found[:2].flatten(), mean / scale, rtol=1e-8, atol=1e-10)
    for part in covariance.diagonal().clone().reshape(2, 8, 8):
        torch.testing.assert_close(found[4] * DATA_SCALE * scale, part.sqrt(), rtol=1e-8, atol=1e-10)
    assert torch.equal(found[5], acquisition.operator.mask.double().unsqueeze(1).expand(8, 8))
    assert found.dtype == condition["level"].dtype == torch.float64
    noise = 0.5 * acquisition.operator.variance.log().mean() - np.log(scale)
    torch.testing.assert_close(condition["level"], torch.stack([noise, noise]) + 4.0)


@pytest.mark.parametrize("kind", ["random", "equispaced"])
@pytest.mark.parametrize(("acceleration", "calibration"), [(2, 8), (4, 4)])
def test_pairs_have_the_conditions_of_acquisitions(kind: str, acceleration: int, calibration: int) -> None:
    """The fast way is no approximation: same maps, noise and mismatch as `acquire`, to single precision, in any unit."""
    mask = line_mask(32, acceleration, calibration, kind, seed=1)
    scanned, _ = simulated_scan(images(1)[0], mask, coils=5, seed=2)
    acquisition = acquire(scanned)
    operator, y = measured_operator(torch.from_numpy(scanned["kspace"].values[0]), mask, scanned.attrs["calibration"])
    expected, unit = condition_of(acquisition.operator, acquisition.y)
    found, scale = condition_of(operator, y)
    assert scale == pytest.approx(unit * acquisition.scale, rel=1e-4)
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-3, atol=1e-3)


def test_entries_that_were_not_measured_change_nothing() -> None:
    mask = line_mask(32, 3, 6, seed=0)
    scanned, _ = simulated_scan(images(1)[0], mask, coils=4, seed=0)
    kspace = torch.from_numpy(scanned["kspace"].values[0])
    leak = torch.where(mask.unsqueeze(1), kspace, 99.0)
    (one, y), (other, z) = (measured_operator(data, mask, scanned.attrs["calibration"]) for data in (kspace, leak))
    first, second = condition_of(one, y), condition_of(other, z)
    assert first.scale == second.scale and all(torch.equal(first.condition[k], second.condition[k]) for k in first.condition)


def test_a_pair_depends_on_its_number_alone_and_its_target_is_the_image_under_the_estimated_maps() -> None:
    truth = images(4)
    pairs, fewer, other = training_pairs(truth, seed=3), training_pairs(truth[:2], seed=3), training_pairs(truth[:2], seed=4)
    assert torch.equal(pairs.image[:2], fewer.image)
    assert all(torch.equal(pairs.condition[name][:2], fewer.condition[name]) for name in fewer.condition)
    assert not torch.equal(other.condition["images"], fewer.condition["images"])
    for image, seen in zip(pairs.image, pairs.condition["images"], strict=True):
        damped = seen[:2]
        assert (image - damped).square().mean() < 0.5 * image.square().mean()  # phases agree, and scales do
        # the phase is the one of the data: turning the image is no better
        turned = torch.stack([-image[1], image[0]])
        assert (image - damped).square().mean() < 0.2 * (turned - damped).square().mean()
        assert 0.5 < float(torch.quantile(image.norm(dim=0).flatten(), 0.95)) < 2
    lines = pairs.condition["images"][:, 5, :, 0].sum(1)
    assert ((lines >= 4) & (lines <= 16)).all() and (pairs.condition["level"][:, 1] >= pairs.condition["level"][:, 0]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": (0.1, 0.01)}, r"noise=\(0.1, 0.01\): give the least and the largest, both > 0"),
        ({"accelerations": (0.0, 4.0)}, "accelerations="),
        ({"accelerations": (0.5, 4.0)}, "1 or more, leaving 4 lines"),
        ({"accelerations": (2.0, 9.0)}, "of 32 lines"),
        ({"calibration": (4,)}, "calibration=.*give the least and the largest"),
    ],
)
def test_ranges_that_make_no_scans_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        training_pairs(images(1), seed=0, **options)


def test_other_images_and_operators_are_refused() -> None:
    with pytest.raises(UserError, match=r"the images are \(2, 32, 32\): pairs need \(N, 2, H, W\)"):
        training_pairs(images(1)[0], seed=0)
    maps = torch.ones(1, 8, 8, dtype=torch.complex64)
    points = Sense(maps, torch.eye(8, dtype=torch.bool), torch.ones(1, 8))
    with pytest.raises(UserError, match="a mask of points: an amortised posterior is trained for masks of lines"):
        condition_of(points, torch.zeros(1, 8, dtype=torch.complex64))
    with pytest.raises(UserError, match="no noise variance"):
        condition_of(Sense(maps, [True] * 8), torch.zeros(1, 8, 8, dtype=torch.complex64))
    whitened = Sense(maps, [True] * 8, torch.ones(1, 8))
    with pytest.raises(UserError, match="zero or not finite"):
        condition_of(whitened, torch.zeros(1, 8, 8, dtype=torch.complex64))
    with pytest.raises(ValueError, match="y has shape"):
        condition_of(whitened, torch.zeros(1, 7, 8, dtype=torch.complex64))
