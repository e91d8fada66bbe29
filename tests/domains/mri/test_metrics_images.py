"""PSNR and SSIM against closed forms and against loops over windows."""

import numpy as np
import pytest
from sciflow_mri.metrics import match_scale, psnr, ssim

from sciflow.errors import UserError


def images(shape=(15, 12), seed=0):
    generator = np.random.default_rng(seed)
    truth = np.abs(generator.normal(2, 1, shape))
    image = truth + generator.normal(0, 0.3, shape)
    return np.abs(image), truth, generator.random(shape) < 0.7


def brute_ssim(x, y, support):
    """Window by window, mirrored with the border repeated."""
    scale = (x[support] * y[support]).sum() / (x[support] ** 2).sum()
    x, level, values = scale * x, y[support].max(), []
    wide_x, wide_y = (np.pad(image, 3, mode="symmetric") for image in (x, y))
    for i, j in zip(*np.nonzero(support), strict=True):
        a, b = wide_x[i : i + 7, j : j + 7].ravel(), wide_y[i : i + 7, j : j + 7].ravel()
        c = np.cov(a, b)  # unbiased
        one, two = (0.01 * level) ** 2, (0.03 * level) ** 2
        values.append(
            (2 * a.mean() * b.mean() + one) * (2 * c[0, 1] + two)
            / ((a.mean() ** 2 + b.mean() ** 2 + one) * (c[0, 0] + c[1, 1] + two))
        )  # fmt: skip
    return np.mean(values)


@pytest.mark.parametrize("shape", [(15, 12), (7, 7), (20, 9)])
def test_ssim_equals_loops(shape):
    image, truth, support = images(shape)
    assert ssim(image, truth, support) == pytest.approx(brute_ssim(image, truth, support), abs=1e-10)
    everywhere = np.ones(shape, bool)
    assert ssim(image, truth) == pytest.approx(brute_ssim(image, truth, everywhere), abs=1e-10)


def test_psnr_by_hand():
    image, truth, support = images()
    a, b = image[support], truth[support]
    scale = (a @ b) / (a @ a)
    expected = 10 * np.log10(b.max() ** 2 / np.mean((scale * a - b) ** 2))
    assert psnr(image, truth, support) == pytest.approx(expected, abs=1e-10)


def test_known_psnr():
    """An error of alternating sign and size e beside a constant 1 is orthogonal to it: the scale is 1 / (1 + e^2)."""
    error = 0.1 * np.where(np.indices((10, 10)).sum(0) % 2, 1, -1)
    assert psnr(1 + error, np.ones((10, 10))) == pytest.approx(10 * np.log10(1 + 1 / 0.01), abs=1e-9)


def test_scale_and_phase_do_not_matter():
    image, truth, support = images()
    phase = np.exp(1j * np.random.default_rng(1).uniform(0, 6, image.shape))
    assert psnr(7 * image * phase, truth, support) == pytest.approx(psnr(image, truth, support))
    assert ssim(7 * image * phase, truth * phase, support) == pytest.approx(ssim(image, truth, support))
    assert np.allclose(match_scale(7 * truth * phase, truth), truth)


def test_only_the_support_counts_for_psnr():
    image, truth, support = images()
    other = np.where(support, image, 99.0)
    assert psnr(other, truth, support) == psnr(image, truth, support)


def test_identical_images():
    _, truth, support = images()
    assert psnr(truth, truth, support) > 200 or np.isinf(psnr(truth, truth, support))
    assert ssim(truth, truth, support) == pytest.approx(1)


def test_a_flat_image_has_the_ssim_of_its_means():
    """No structure in one of the images: the second factor is c_2 / (s_y^2 + c_2)."""
    truth = 1 + 0.5 * np.where(np.indices((21, 21)).sum(0) % 2, 1, -1)
    value = ssim(np.ones((21, 21)), truth)
    assert 0 < value < 0.05


@pytest.mark.parametrize(
    ("image", "truth", "support", "message"),
    [
        (np.ones((3, 4)), np.ones((4, 3)), None, r"image of shape \(3, 4\), a truth of shape \(4, 3\)"),
        (np.ones((3, 3)), np.ones((3, 3)), np.zeros((3, 3)), "support is empty"),
        (np.full((3, 3), np.nan), np.ones((3, 3)), None, "not finite"),
        (np.ones((3, 3)), np.zeros((3, 3)), None, "truth is zero"),
    ],
)
def test_messages(image, truth, support, message):
    with pytest.raises(UserError, match=message):
        psnr(image, truth, support)


def test_a_zero_image_has_the_error_of_nothing():
    assert psnr(np.zeros((3, 3)), np.ones((3, 3))) == pytest.approx(0)
