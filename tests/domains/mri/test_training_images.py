"""Training images: geometry, scale, phase, and what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sciflow_mri.model.appearance import bias_field, contrast, smooth_phase
from sciflow_mri.model.slices import normalised, oblique_slice
from sciflow_mri.model.training_images import scale_of, training_images

from sciflow.errors import UserError


def ball(size: int = 48, radius: float = 0.35) -> np.ndarray:
    z, y, x = np.meshgrid(*[np.linspace(-0.5, 0.5, size)] * 3, indexing="ij")
    shell = np.sqrt(z**2 + y**2 + x**2) < radius
    return (100 * shell * (1 + 0.5 * np.sin(9 * x))).astype(np.float32)


def test_slices_show_the_object_and_fill_the_field() -> None:
    """Planes through a ball are discs: each touches neither too little nor all of the field, on both axes."""
    volume, rng = normalised(ball()), np.random.default_rng(0)
    for _ in range(20):
        inside = oblique_slice(volume, 40, rng) > 0.08
        for axis in (0, 1):
            share = inside.any(axis).mean()
            assert 0.6 <= share <= 1.0


def test_anisotropic_voxels_are_taken_into_account() -> None:
    """A ball sampled with voxels twice as thick is a ball all the same: discs in planes of every orientation."""
    volume = normalised(ball()[::2])
    rng = np.random.default_rng(1)
    areas = [(oblique_slice(volume, 40, rng, spacing=(2.0, 1.0, 1.0)) > 0.08).mean() for _ in range(20)]
    wanted = np.pi / 4 * 0.85**2  # a disc that fills 72 to 98 per cent of each side
    assert abs(np.mean(areas) - wanted) < 0.12


def test_contrast_keeps_zero_and_range() -> None:
    rng, levels = np.random.default_rng(0), np.linspace(0, 1.5, 50)
    for _ in range(50):
        found = contrast(levels, rng)
        assert found[0] == 0 and found.min() >= 0 and found.max() < 4 and found.dtype == np.float32


def test_bias_and_phase_are_smooth() -> None:
    """Steps between neighbours are small, and phases turn by up to a few radians."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        field, phase = bias_field(64, rng), smooth_phase(64, rng)
        assert field.min() > 0 and np.abs(np.diff(np.log(field), axis=0)).max() < 0.15
        np.testing.assert_allclose(np.abs(phase), 1, rtol=1e-5)
        assert np.abs(np.angle(phase[1:] * phase[:-1].conj())).max() < 0.8


def test_images_have_their_percentile_near_one_and_an_address() -> None:
    images = training_images([ball(), 7 * ball()], 6, 24, seed=3, scale_spread=0.1)
    assert images.shape == (6, 2, 24, 24) and images.dtype == torch.float32
    scales = [scale_of(torch.complex(image[0], image[1]).numpy()) for image in images]
    assert all(np.exp(-0.1) * 0.999 <= scale <= np.exp(0.1) * 1.001 for scale in scales)
    again = training_images([ball(), 7 * ball()], 3, 24, seed=3, scale_spread=0.1)
    torch.testing.assert_close(images[:3], again, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("volume", "message"),
    [
        (np.ones((4, 4, 4)), "at least 16 voxels"),
        (np.ones((20, 20, 20)), "constant"),
        (-ball(), "negative"),
        (np.where(ball() > 0, np.nan, 0), "not finite"),
    ],
    ids=["small", "constant", "negative", "NaN"],
)
def test_volumes_that_are_refused(volume, message) -> None:
    with pytest.raises(UserError, match=message):
        training_images([volume], 1, 16, seed=0)


def test_no_head_is_refused() -> None:
    volume = np.zeros((32, 32, 32), np.float32)
    volume[0, 0, 0] = 1
    with pytest.raises(UserError, match="is it a head"):
        training_images([volume], 1, 16, seed=0)
    with pytest.raises(UserError, match="no volumes"):
        training_images([], 1, 16, seed=0)
    with pytest.raises(UserError, match="2 volumes but 1 spacings"):
        training_images([ball(), ball()], 1, 16, seed=0, spacings=[(1.0, 1.0, 1.0)])
