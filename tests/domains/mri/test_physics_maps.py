"""Coil maps against the truth, against sigpy where it applies, and blind to all but the calibration lines."""

import numpy as np
import pytest
import torch
from sciflow_mri.physics import calibration_block, compress_coils, line_mask, sensitivity_maps, to_image, to_kspace

from sciflow.errors import UserError


def grid(size):
    axis = torch.linspace(-1, 1, size, dtype=torch.float64)
    return torch.meshgrid(axis, axis, indexing="ij")


def scan(size=48, coils=6, noise=0.0, seed=0):
    """k-space of an ellipse with edges and a smooth phase in front of smooth coils; the maps (sum of squares 1); the object."""
    y, x = grid(size)
    inside = (y / 0.8) ** 2 + (x / 0.6) ** 2 < 1
    texture = 1 + 0.5 * torch.cos(9 * x + 4 * y) * (x > 0)
    image = inside * texture * torch.exp(1j * (0.7 * x - 0.4 * y * y))
    angle = 2 * torch.pi * torch.arange(coils, dtype=torch.float64) / coils
    distance = (y - 1.3 * angle.sin()[:, None, None]) ** 2 + (x - 1.3 * angle.cos()[:, None, None]) ** 2
    phase = angle[:, None, None] + 0.5 * x * angle.cos()[:, None, None] - 0.4 * y * angle.sin()[:, None, None]
    maps = torch.exp(-distance / 2.5) * torch.exp(1j * phase)
    maps = maps / maps.abs().square().sum(0).sqrt()
    kspace = to_kspace(maps * image)
    generator = torch.Generator().manual_seed(seed)
    parts = noise * torch.randn(2, *kspace.shape, dtype=torch.float64, generator=generator)
    return kspace + torch.complex(parts[0], parts[1]), maps, inside


def cosine(a, b):
    """|<a, b>| over coils of maps of sum of squares 1: 1 if they are the same up to a phase."""
    return (a.conj() * b).sum(0).abs()


@pytest.mark.parametrize(("calibration", "close"), [(24, 0.999), (8, 0.995), (4, 0.98)])
def test_true_maps_are_found_up_to_a_phase(calibration, close):
    kspace, truth, inside = scan()
    maps, eigenvalue = sensitivity_maps(kspace, calibration_block(48, calibration))
    assert float(cosine(maps, truth)[inside].quantile(0.05)) > close
    assert torch.allclose(maps.abs().square().sum(0), torch.ones(48, 48, dtype=torch.float64))
    assert float(eigenvalue[inside].median()) > 0.9
    assert eigenvalue.dtype == torch.float64 and maps.dtype == torch.complex128


@pytest.mark.parametrize("size", [40, 41])
def test_maps_equal_sigpy_on_a_square(size):
    from sigpy.mri.app import EspiritCalib

    kspace = scan(size, coils=4, noise=0.01)[0]
    expected, value = EspiritCalib(
        kspace.numpy(), calib_width=16, kernel_width=5, crop=0, max_iter=400, output_eigenvalue=True, show_pbar=False
    ).run()
    block = calibration_block(size, 16)
    maps, eigenvalue = sensitivity_maps(kspace, block, columns=block, kernel=(5, 5))
    inside = eigenvalue > 0.8
    assert np.abs(np.abs(value) - eigenvalue.numpy()).max() < 1e-4
    assert float(cosine(maps, torch.from_numpy(np.array(expected)))[inside].min()) > 1 - 1e-6


def test_the_phase_is_that_of_the_virtual_coil_and_smooth():
    kspace = scan()[0]
    maps, eigenvalue = sensitivity_maps(kspace, calibration_block(48, 8))
    block = kspace[:, 20:28, 8:40].flatten(1)  # the default window of 32 columns
    virtual = torch.linalg.svd(block, full_matrices=False)[0][:, 0]
    seen = torch.einsum("c,cyx->yx", virtual.conj(), maps)
    assert float(seen.imag.abs().max()) < 1e-10 and float(seen.real.min()) >= 0
    inside = (eigenvalue > 0.8) & (eigenvalue.roll(1, 1) > 0.8)
    steps = (maps * maps.roll(1, 2).conj()).sum(0).angle().abs()
    assert float(steps[inside].max()) < 0.3


def test_maps_do_not_depend_on_scale_and_turn_with_the_coils():
    kspace, _, inside = scan()
    maps, _ = sensitivity_maps(kspace, (20, 28))
    scaled, _ = sensitivity_maps(1e4 * kspace, (20, 28))
    assert torch.allclose(maps, scaled, atol=1e-6)
    turn = torch.exp(1j * torch.arange(6, dtype=torch.float64))[:, None, None]
    turned, _ = sensitivity_maps(turn * kspace, (20, 28))
    assert torch.allclose(cosine(turned, turn * maps)[inside], torch.ones(int(inside.sum()), dtype=torch.float64), atol=1e-6)


@pytest.mark.parametrize("fill", [0.0, 1e6, float("nan")])
def test_unsampled_kspace_cannot_change_a_bit(fill):
    kspace = scan(noise=0.01)[0].to(torch.complex64)
    block = calibration_block(48, 8)
    other = torch.full_like(kspace, fill)
    other[:, block[0] : block[1]] = kspace[:, block[0] : block[1]]
    for one, two in zip(sensitivity_maps(kspace, block), sensitivity_maps(other, block), strict=True):
        assert torch.equal(one, two)
    assert torch.equal(compress_coils(kspace, block, 3)[1], compress_coils(other, block, 3)[1])
    mask = line_mask(48, 4, 8)
    noisy = torch.where(mask.unsqueeze(1), kspace, fill)
    assert torch.equal(sensitivity_maps(noisy, block)[0], sensitivity_maps(kspace, block)[0])


def test_crop_is_where_the_eigenvalue_is_small():
    maps, eigenvalue = sensitivity_maps(scan(noise=0.02)[0], (12, 36), crop=0.7)
    assert torch.equal((maps == 0).all(0), eigenvalue <= 0.7) and bool((eigenvalue <= 0.7).any())


def test_single_precision_and_odd_rectangles():
    kspace = scan(48)[0].to(torch.complex64)[:, 3:, 5:]
    maps, eigenvalue = sensitivity_maps(kspace, (17, 26))
    assert maps.shape == (6, 45, 43) and maps.dtype == torch.complex64 and eigenvalue.dtype == torch.float32
    assert bool(maps.isfinite().all())


def test_compression_keeps_the_energy_and_white_noise():
    kspace, _, _ = scan()
    virtual, matrix = compress_coils(kspace, (20, 28), 4)
    assert torch.allclose(matrix @ matrix.mH, torch.eye(4, dtype=torch.complex128), atol=1e-12)
    kept = virtual.abs().square().sum() / kspace.abs().square().sum()
    assert 0.95 < float(kept) <= 1
    everything, _ = compress_coils(kspace, (20, 28), 6)
    assert torch.allclose(everything.abs().square().sum(), kspace.abs().square().sum())
    # of calibration lines it is the best approximation of its rank
    values = torch.linalg.svdvals(kspace[:, 20:28].flatten(1))
    assert torch.allclose(virtual[:, 20:28].abs().square().sum(), values[:4].square().sum())


def test_maps_of_virtual_coils_explain_them():
    virtual, _ = compress_coils(scan()[0], (20, 28), 4)
    maps, _ = sensitivity_maps(virtual, (20, 28))
    image = to_image(virtual)
    rest = image - maps * (maps.conj() * image).sum(0)
    assert float(rest.norm() / image.norm()) < 0.1


GOOD = torch.ones(3, 16, 16, dtype=torch.complex64)


def changed(coil, line, value):
    kspace = GOOD.clone()
    kspace[coil, line] = value
    return kspace


@pytest.mark.parametrize(
    ("kspace", "calibration", "settings", "message"),
    [
        (GOOD, (12, 20), {}, r"calibration lines \[12, 20\] do not fit into 16"),
        (GOOD, (8, 8), {}, r"give \[first, last \+ 1\]"),
        (GOOD, (6, 7), {}, "does not fit into 1 calibration lines"),
        (GOOD, (6, 10), {"kernel": (5, 5)}, "a kernel of 5 x 5 does not fit into 4 calibration lines"),
        (GOOD, (6, 10), {"threshold": 1.0}, "threshold 1.0 and crop 0.0"),
        (changed(1, 7, torch.nan), (6, 10), {}, "16 calibration entries of k-space are not finite"),
        (changed(slice(None), 8, 0), (6, 10), {}, "not all measured: line 8 is zero"),
        (changed(2, slice(None), 0), (6, 10), {}, r"coils \[2\] have no signal"),
        (0 * GOOD, (6, 10), {}, "not all measured: line 6 is zero"),
    ],
)
def test_messages(kspace, calibration, settings, message):
    with pytest.raises(UserError, match=message):
        sensitivity_maps(kspace, calibration, **settings)


def test_other_messages():
    with pytest.raises(UserError, match="4 virtual coils of 3 coils: give 1 to 3"):
        compress_coils(GOOD, (6, 10), 4)
    with pytest.raises(ValueError, match="dtype float32"):
        sensitivity_maps(GOOD.real, (6, 10))
    with pytest.raises(ValueError, match="int32"):
        sensitivity_maps(GOOD.real.int(), (6, 10))
    with pytest.raises(ValueError, match=r"expected \(coil, ky, kx\)"):
        sensitivity_maps(GOOD[None], (6, 10))
