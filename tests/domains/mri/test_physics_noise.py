"""Noise: estimated sigma against the true one, map mismatch against the true one."""

import pytest
import torch
from sciflow_mri.physics import (
    calibration_block,
    line_mask,
    line_variance,
    mismatch,
    poisson_disc,
    sensitivity_maps,
    thermal_sigma,
    to_image,
    to_kspace,
)

from sciflow.errors import UserError


def white(*shape, seed=0):
    """Complex numbers whose real and imaginary part have variance 1 each."""
    parts = torch.randn(2, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return torch.complex(parts[0], parts[1])


def scan(size=64, coils=6, seed=0, kind=1.0):
    """k-space of an ellipse of texture, an edge and smooth coils, without noise; and the maps."""
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    y, x = torch.meshgrid(axis, axis, indexing="ij")
    inside = (y / 0.75) ** 2 + (x / 0.7) ** 2 < 1
    image = 100 * inside * (1 + 0.4 * torch.cos(11 * x + 5 * y + seed) + 0.5 * ((x - 0.2) ** 2 + y**2 < 0.1))
    angle = 2 * torch.pi * torch.arange(coils, dtype=torch.float64) / coils + 0.3 * seed
    distance = (y - 1.2 * angle.sin()[:, None, None]) ** 2 + (x - 1.2 * angle.cos()[:, None, None]) ** 2
    maps = torch.exp(-kind * distance / 1.5) * torch.exp(1j * (angle[:, None, None] + 0.8 * x * angle.cos()[:, None, None]))
    maps = maps / maps.abs().square().sum(0).sqrt()
    return to_kspace(maps * image), maps


@pytest.mark.parametrize("sigma", [0.5, 5.0])
@pytest.mark.parametrize(("size", "acceleration", "calibration"), [(64, 4, 8), (128, 4, 10), (128, 8, 6), (65, 4, 9)])
def test_estimated_sigma(sigma, size, acceleration, calibration):
    """Within 25 % for each coil. Of 8 lines or more x 6 columns or more the standard error is 7 %: false alarms below 1e-2 over
    all, and the seeds are fixed. What is left of the signal may only add."""
    kspace, _ = scan(size)
    true = sigma * torch.linspace(1, 2, 6, dtype=torch.float64)
    kspace = kspace + true[:, None, None] * white(*kspace.shape, seed=3)
    mask = line_mask(size, acceleration, calibration, seed=2)
    found = thermal_sigma(torch.where(mask.unsqueeze(1), kspace, 0), mask, calibration_block(size, calibration))
    assert found.shape == (6,)
    assert bool(((found / true - 1).abs() < 0.25).all())


def test_sigma_of_pure_noise_is_unbiased():
    """Mean over coils and scans: 64 x 16 lines x 6 columns, standard error 0.6 %; the smaller of two estimates is 3 % low."""
    noise = white(64, 16, 64, seed=4)
    found = thermal_sigma(noise, torch.ones(16, dtype=torch.bool))
    assert 0.94 < float(found.square().mean().sqrt()) < 1.01


def test_sigma_of_points():
    """102 points: standard error 5 %. The edges of the object reach the ends of k-space, so that signal adds to weak noise."""
    clean, _ = scan(64)
    mask = poisson_disc((64, 64), 4, 8)
    for sigma, too_large in ((20.0, 0.2), (3.0, 0.5)):
        kspace = clean + sigma * white(*clean.shape, seed=3)
        found = thermal_sigma(torch.where(mask, kspace, 0), mask) / sigma
        assert bool(((found > 0.8) & (found < 1 + too_large)).all())


def test_true_maps_leave_nothing_but_noise_unexplained():
    kspace, maps = scan()
    noisy = kspace + 2 * white(*kspace.shape)
    sigma = torch.full((6,), 2.0, dtype=torch.float64)
    assert max(mismatch(kspace, maps, (12, 52), 0 * sigma)) < 2e-2  # truncation of the coil images at the block's ends
    inside, others = mismatch(noisy, maps, (0, 64), sigma)
    assert inside == pytest.approx(others, abs=1e-9) and others < 1e-3
    plain = mismatch(noisy, maps, (0, 64), 0 * sigma)[1]
    power = float(noisy.abs().square().sum())
    assert plain == pytest.approx(8 * 64 * 64 * 6 * 5 / 6 / power, rel=0.05)  # 2 sigma^2 per entry, 5 of 6 parts


@pytest.mark.parametrize(("size", "calibration"), [(64, 8), (64, 4), (96, 6)])
@pytest.mark.parametrize("kind", [0.5, 2.0])
def test_mismatch_of_calibrated_maps(size, calibration, kind):
    """Lines beside the calibration: the true fraction that S S' leaves is between a sixth and three times the estimate."""
    kspace, _ = scan(size, kind=kind)
    sigma = torch.full((6,), 0.5, dtype=torch.float64)
    kspace = kspace + 0.5 * white(*kspace.shape)
    block = calibration_block(size, calibration)
    maps, _ = sensitivity_maps(kspace, block)
    image = to_image(kspace)
    rest = to_kspace(image - maps * (maps.conj() * image).sum(0)).abs().square().sum((0, 2))
    energy = kspace.abs().square().sum((0, 2))
    beside = torch.ones(size, dtype=torch.bool)
    beside[block[0] : block[1]] = False
    thermal = 2 * 0.25 * 6 * size * int(beside.sum())
    true = float((rest[beside].sum() - thermal * 5 / 6) / (energy[beside].sum() - thermal))
    _, estimate = mismatch(kspace, maps, block, sigma)
    assert 1 / 6 < true / estimate < 3


def test_line_variance_is_its_formula():
    kspace, _ = scan()
    kspace = kspace + white(*kspace.shape)
    mask, block = line_mask(64, 4, 8), calibration_block(64, 8)
    maps, _ = sensitivity_maps(kspace, block)
    sigma = torch.linspace(0.8, 1.2, 6, dtype=torch.float64)
    found = line_variance(kspace, maps, mask, block, sigma)
    inside, others = mismatch(kspace, maps, block, sigma)
    assert 0 < inside < others
    for line in range(64):
        fraction = inside if block[0] <= line < block[1] else others
        for coil in range(6):
            excess = max(float(kspace[coil, line].abs().square().mean()) / 2 - float(sigma[coil]) ** 2, 0) * bool(mask[line])
            assert float(found[coil, line]) == pytest.approx(float(sigma[coil]) ** 2 + fraction * excess)


def test_line_variance_of_points_is_that_of_lines_where_whole_lines_are_measured():
    kspace, maps = scan()
    mask, sigma = line_mask(64, 4, 8), torch.ones(6, dtype=torch.float64)
    block = calibration_block(64, 8)
    one = line_variance(kspace, maps, mask, block, sigma)
    assert torch.allclose(one, line_variance(kspace, maps, mask.unsqueeze(1).expand(64, 64), block, sigma))


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan")])
def test_unmeasured_kspace_cannot_change_a_bit(fill):
    kspace = (scan()[0] + white(6, 64, 64)).to(torch.complex64)
    mask, block = line_mask(64, 4, 8), calibration_block(64, 8)
    other = torch.where(mask.unsqueeze(1), kspace, fill)
    results = []
    for data in (kspace, other):
        maps, _ = sensitivity_maps(data, block)
        sigma = thermal_sigma(data, mask, block)
        results.append((maps, sigma, line_variance(data, maps, mask, block, sigma)))
    assert all(torch.equal(one, two) for one, two in zip(*results, strict=True))
    assert results[0][2].dtype == torch.float32


def test_fractions_come_from_the_calibration_lines_alone():
    kspace, maps = scan()
    other = torch.full_like(kspace, torch.nan)
    other[:, 28:36] = kspace[:, 28:36]
    sigma = torch.ones(6, dtype=torch.float64)
    assert mismatch(kspace, maps, (28, 36), sigma) == mismatch(other, maps, (28, 36), sigma)


@pytest.mark.parametrize("length", [2.0, 0.5, "its own"])
def test_maps_of_any_length_explain_the_same(length):
    """Maps that are given have the length of whoever made them; only their direction says what an image can be."""
    kspace, maps = scan()
    kspace, sigma = kspace + white(*kspace.shape), torch.ones(6, dtype=torch.float64)
    size = 1 + 0.5 * torch.rand(64, 64, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    size[:3] = 0  # cropped: these see nothing
    found = mismatch(kspace, maps * (size > 0), (28, 36), sigma)
    other = mismatch(kspace, maps * (size if length == "its own" else length * (size > 0)), (28, 36), sigma)
    assert other == pytest.approx(found, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: thermal_sigma(white(2, 8, 8), torch.arange(8) == 3), "from 1 measured line"),
        (lambda: thermal_sigma(0 * white(2, 8, 8), torch.ones(8)), "give noise samples or sigma"),
        (lambda: thermal_sigma(torch.nan * white(2, 8, 8), torch.ones(8)), "not finite"),
    ],
)
def test_messages(call, message):
    with pytest.raises(UserError, match=message):
        call()


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"mask has shape \(7,\) and k-space \(2, 8, 8\)"):
        thermal_sigma(white(2, 8, 8), torch.ones(7))
    with pytest.raises(ValueError, match=r"maps have shape \(2, 8, 8\) and k-space \(3, 8, 8\)"):
        mismatch(white(3, 8, 8), white(2, 8, 8), (2, 6), torch.ones(3))
