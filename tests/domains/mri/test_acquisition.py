"""What a scan says by itself, and the prior over images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_mri.data import prepare, read_volume
from sciflow_mri.model.prior import image_flow, train_prior
from sciflow_mri.model.simulated import coil_maps, simulated_scan
from sciflow_mri.model.training_images import training_images
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.posterior.acquisition import acquire

import sciflow
from sciflow.errors import UserError


def image(size: int = 32) -> torch.Tensor:
    y, x = torch.meshgrid(*[torch.linspace(-1, 1, size)] * 2, indexing="ij")
    disc = ((x / 0.8) ** 2 + (y / 0.7) ** 2 < 1).float() * (1 + 0.3 * torch.sin(5 * x) * torch.cos(4 * y))
    return torch.stack([disc * torch.cos(x + 0.5 * y), disc * torch.sin(x + 0.5 * y)])


def test_the_operator_explains_the_data_and_the_scale_is_right() -> None:
    """R = 2 with estimated maps: whitened residual of the truth near 1 (0.2 to 1.5: the noise is an estimate), and the 95th
    percentile of the true image is within 8 % of 1 in units of the prior."""
    scan, truth = simulated_scan(image(), line_mask(32, 2, 8, seed=0), noise=0.01, seed=0)
    found = acquire(scan)
    level = float(torch.quantile(truth.norm(dim=0).flatten(), 0.95)) / found.scale
    assert abs(level - 1) < 0.08
    maps = found.maps
    assert float((maps.abs().square().sum(0) - 1).abs().max()) < 1e-4
    damped = found.operator.normal_solve(found.operator.adjoint(found.y[None]), 1.0)
    residual = (found.y - found.operator(damped)[0]).abs().square().mean() / 2
    assert 0.2 < float(residual) < 1.5
    inside = truth.norm(dim=0) > 0.2 * float(truth.norm(dim=0).max())
    error = (damped[0].norm(dim=0) * found.scale - truth.norm(dim=0))[inside]
    assert float(error.square().mean().sqrt()) < 0.25 * float(truth.norm(dim=0)[inside].mean())


def test_units_of_the_file_do_not_matter() -> None:
    scan, _ = simulated_scan(image(), line_mask(32, 2, 8, seed=0), seed=0)
    one, other = acquire(scan), acquire(scan.assign(kspace=scan["kspace"] * np.complex64(1000)))
    torch.testing.assert_close(one.y, other.y, rtol=1e-3, atol=1e-3)
    assert abs(other.scale / one.scale / 1000 - 1) < 1e-4


@pytest.mark.parametrize("unit", [1e-9, 1e-6, 1e6])
def test_scans_in_small_and_large_units(unit: float) -> None:
    """Raw fastMRI data are of the order of 1e-6: squares of their inverse variance are beyond single precision."""
    scan, _ = simulated_scan(image(), line_mask(32, 2, 8, seed=0), seed=0)
    one, other = acquire(scan), acquire(scan.assign(kspace=scan["kspace"] * np.complex64(unit)))
    assert other.scale / one.scale / unit == pytest.approx(1, rel=1e-3)
    torch.testing.assert_close(one.y, other.y, rtol=1e-3, atol=1e-3)


def test_unmeasured_entries_are_never_looked_at() -> None:
    """No calibration leak: other full scans that agree on the lines of the mask alone are the same acquisition, to the bit."""
    mask = line_mask(32, 4, 6, seed=1).numpy()
    full, _ = simulated_scan(image(), torch.ones(32, dtype=torch.bool), seed=2)
    values = full["kspace"].values
    others = np.random.default_rng(0).permutation(values.reshape(-1)).reshape(values.shape) * np.complex64(50)
    scans = [full.assign(kspace=(full["kspace"].dims, np.where(mask[:, None], values, filled))) for filled in (values, others)]
    assert bool((scans[0]["kspace"].values != scans[1]["kspace"].values).any())
    one, other = (acquire(prepare(scan, undersample=mask)) for scan in scans)
    for name in ("y", "maps", "eigenvalue", "sigma", "variance", "kspace"):
        assert torch.equal(getattr(one, name), getattr(other, name)), name
    assert one.scale == other.scale


def test_maps_of_another_length_give_the_same_data_noise() -> None:
    """Twice the maps are half the image; what the maps leave unexplained is the same."""
    scan, _ = simulated_scan(image(), line_mask(32, 2, 8, seed=0), seed=0)
    own = acquire(scan)
    given = acquire(scan, maps=2 * own.maps)
    torch.testing.assert_close(given.variance, own.variance, rtol=1e-4, atol=0)
    assert given.scale == pytest.approx(own.scale / 2, rel=2e-2)


def test_messages() -> None:
    scan, _ = simulated_scan(image(), line_mask(32, 2, 8, seed=0), seed=0)
    with pytest.raises(UserError, match="no slice 3, there are 1"):
        acquire(scan, 3)
    with pytest.raises(UserError, match="sigma=-1"):
        acquire(scan, sigma=-1)
    with pytest.raises(UserError, match="simulation 0, slice 0: Sense: variances"):
        acquire(scan, sigma=1e30)
    with pytest.raises(UserError, match="simulation 0, slice 0: Sense: 1 entries of the maps are not finite"):
        bad = acquire(scan).maps.clone()
        bad[0, 0, 0] = torch.nan
        acquire(scan, maps=bad)
    with pytest.raises(UserError, match="maps given"):
        acquire(scan, maps=torch.ones(2, 3, 3))
    with pytest.raises(UserError, match="32 x 32 points, the prior 16 x 16"):
        acquire(scan).problem(image_flow(16, widths=(8,), blocks=1))
    with pytest.raises(UserError, match="expected \\(2, y, x\\)"):
        simulated_scan(torch.zeros(3, 4, 4), torch.ones(4, dtype=torch.bool))


def test_coil_maps_vary_in_sensitivity_and_are_smooth() -> None:
    maps = coil_maps(6, 32, np.random.default_rng(0))
    power = (np.abs(maps) ** 2).sum(0)
    assert maps.shape == (6, 32, 32) and abs(power.mean() - 1) < 1e-4 and power.max() / power.min() > 1.2
    assert np.abs(np.diff(maps, axis=1)).max() < 0.6


def test_a_prior_learns_and_is_kept_in_half(tmp_path) -> None:
    """120 steps on stripes lower the validation loss; the saved flow says its scale."""
    phase = torch.rand(40, 1, 1, 1, generator=torch.Generator().manual_seed(0)) * 6
    stripes = torch.sin(torch.linspace(0, 12, 16).reshape(1, 1, 1, 16) + phase).expand(40, 2, 16, 16).contiguous()
    torch.manual_seed(0)
    flow = image_flow(16, widths=(16, 16), blocks=1, heads=0, data_scale=0.7)
    found = train_prior(stripes[:32], stripes[32:], epochs=30, batch_size=8, learning_rate=5e-3, ema=0.5, flow=flow, warmup=2,
                        progress=False)  # fmt: skip
    losses = [entry["validation_loss"] for entry in found.fit.history]
    assert losses[-1] < 0.9 * losses[0]
    sciflow.save(found.flow, tmp_path / "prior", half=True)
    assert sciflow.load(tmp_path / "prior").network.data_scale == 0.7
    with pytest.raises(UserError, match="must be \\(N, 2, H, W\\)"):
        train_prior(stripes, stripes[:, :1], epochs=1)


@pytest.mark.data
@pytest.mark.slow
@pytest.mark.parametrize(("acceleration", "calibration"), [(2, 12), (4, 8), (8, 4)])
def test_the_scale_of_heads_is_right_on_average(science_data, acceleration, calibration) -> None:
    """Eight slices of a head at 64 x 64: mean ratio within 5 % of 1; its standard error is 1 to 2.5 %, seeded."""
    head = read_volume(science_data / "mri" / "S1_raw.nii.gz")
    images = training_images([head.values], 8, 64, seed=5, scale_spread=0.0)
    ratios = []
    for number, picture in enumerate(images):
        scan, truth = simulated_scan(picture, line_mask(64, acceleration, calibration, seed=number), noise=0.008, seed=number)
        ratios.append(float(torch.quantile(truth.norm(dim=0).flatten(), 0.95)) / acquire(scan).scale)
    assert abs(np.mean(ratios) - 1) < 0.05
