"""On a real fully sampled brain: the noise model is calibrated, nothing leaks, and it makes a linear reconstruction better."""

import numpy as np
import pytest
import torch
from sciflow_mri.metrics import psnr
from sciflow_mri.physics import (
    Sense,
    calibration_block,
    line_mask,
    line_variance,
    sensitivity_maps,
    thermal_sigma,
    to_image,
    to_kspace,
)

pytestmark = pytest.mark.data


@pytest.fixture(scope="module")
def brain(science_data):
    values = np.fromfile(science_data / "mri" / "full.cfl", dtype="<c8").reshape((230, 180, 8), order="F").transpose(2, 0, 1)
    return torch.from_numpy(np.ascontiguousarray(values[:, 116 - 32 : 116 + 32, 89 - 32 : 89 + 32]))


def model(kspace, mask, block):
    maps, _ = sensitivity_maps(kspace, block)
    sigma = thermal_sigma(kspace, mask, block)
    return maps, sigma, line_variance(kspace, maps, mask, block, sigma)


@pytest.mark.parametrize(("acceleration", "calibration"), [(4, 8), (8, 4)])
def test_whitened_residuals_of_the_true_image_have_variance_one(brain, acceleration, calibration):
    """Thermal noise alone would have them at 5 (R4) and 43 (R8) on the calibration lines."""
    block = calibration_block(64, calibration)
    found = []
    for seed in range(3):
        mask = line_mask(64, acceleration, calibration, seed=seed)
        maps, sigma, variance = model(torch.where(mask.unsqueeze(1), brain, 0), mask, block)
        rest = brain - to_kspace(maps * (maps.conj() * to_image(brain)).sum(0))
        power = rest.abs().square().mean(2) / 2
        beside = mask.clone()
        beside[block[0] : block[1]] = False
        centre = slice(*block)
        found.append([float((power / variance)[:, lines].mean()) for lines in (beside, centre)])
        assert float((power / sigma.square().unsqueeze(1))[:, centre].mean()) > 4
    assert np.all((np.mean(found, 0) > 0.5) & (np.mean(found, 0) < 2))


def test_nothing_unsampled_reaches_the_result(brain):
    block, mask = calibration_block(64, 8), line_mask(64, 4, 8)
    results = []
    for kspace in (brain, torch.where(mask.unsqueeze(1), brain, 1e9)):
        maps, sigma, variance = model(kspace, mask, block)
        operator = Sense(maps, mask, variance)
        back = operator.adjoint(operator.whiten(operator.measured(kspace.unsqueeze(0))))
        results.append((maps, sigma, variance, operator.normal_solve(back, 0.1)))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))


def test_map_mismatch_is_worth_decibels(brain):
    """Ridge reconstruction under a prior as wide as the image, acceleration 8: at least 3 dB over thermal noise alone."""
    block, gains = calibration_block(64, 4), []
    maps, eigenvalue = sensitivity_maps(brain, calibration_block(64, 24), kernel=(6, 6), window=24)
    truth, support = (maps.conj() * to_image(brain)).sum(0), eigenvalue > 0.8
    for seed in range(5):
        mask = line_mask(64, 8, 4, seed=seed)
        kspace = torch.where(mask.unsqueeze(1), brain, 0)
        maps, sigma, variance = model(kspace, mask, block)
        width = float((maps.conj() * to_image(kspace)).sum(0).abs().quantile(0.95)) * 0.3
        found = []
        for noise in (variance, sigma.square().unsqueeze(1).expand_as(variance)):
            operator = Sense(maps, mask, noise)
            back = operator.adjoint(operator.whiten(operator.measured(kspace.unsqueeze(0))))
            image = operator.normal_solve(back, 1 / width**2)[0]
            found.append(psnr(torch.complex(image[0], image[1]), truth, support))
        gains.append(found[0] - found[1])
    assert np.mean(gains) > 3
