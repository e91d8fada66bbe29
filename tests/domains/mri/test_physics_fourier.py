"""The centred transform against its formula, on even and odd sizes."""

import numpy as np
import pytest
import torch
from sciflow_mri.physics.columns import fourier_matrix
from sciflow_mri.physics.fourier import to_image, to_kspace

SIZES = [(1, 1), (4, 4), (5, 5), (4, 7), (9, 6)]


def image(*shape, seed=0, dtype=torch.complex128):
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_sum_of_the_formula(size):
    height, width = size
    x = image(height, width).numpy()
    n, m = np.arange(height) - height // 2, np.arange(width) - width // 2
    expected = np.zeros(size, complex)
    for p in range(height):
        for q in range(width):
            phase = (n * (p - height // 2) / height)[:, None] + (m * (q - width // 2) / width)[None]
            expected[p, q] = (x * np.exp(-2j * np.pi * phase)).sum() / np.sqrt(height * width)
    assert np.abs(to_kspace(torch.from_numpy(x)).numpy() - expected).max() < 1e-12


@pytest.mark.parametrize("size", SIZES)
def test_equals_the_matrix(size):
    x = image(*size)
    rows, columns = fourier_matrix(size[0]), fourier_matrix(size[1])
    assert torch.allclose(to_kspace(x), rows @ x @ columns.T, atol=1e-12)


@pytest.mark.parametrize("size", SIZES)
def test_inverse_parseval_and_adjoint(size):
    x, k = image(3, *size), image(3, *size, seed=1)
    assert torch.allclose(to_image(to_kspace(x)), x, atol=1e-12)
    assert torch.allclose(to_kspace(x).abs().square().sum(), x.abs().square().sum())
    assert torch.allclose((to_kspace(x).conj() * k).sum(), (x.conj() * to_image(k)).sum())


@pytest.mark.parametrize("size", SIZES)
def test_the_zero_frequency_and_a_point_in_the_centre_are_at_half_the_size(size):
    flat = torch.ones(size, dtype=torch.complex128)
    k = to_kspace(flat)
    assert k[size[0] // 2, size[1] // 2].real == pytest.approx((size[0] * size[1]) ** 0.5)
    assert float(k.abs().square().sum()) == pytest.approx(size[0] * size[1])  # nothing elsewhere
    point = torch.zeros(size, dtype=torch.complex128)
    point[size[0] // 2, size[1] // 2] = 1
    assert torch.allclose(to_kspace(point), torch.full(size, (size[0] * size[1]) ** -0.5, dtype=torch.complex128))


def test_precision_and_device_are_kept():
    for dtype in (torch.complex64, torch.complex128):
        assert to_kspace(image(2, 4, 5, dtype=dtype)).dtype == dtype
    assert to_image(torch.empty(2, 4, 5, dtype=torch.complex64, device="meta")).device.type == "meta"


@pytest.mark.parametrize(
    "value", [torch.zeros(4, 4), torch.zeros(4, 4, dtype=torch.int16), torch.zeros(4, dtype=torch.complex64)]
)
def test_real_integer_and_flat_input_are_refused(value):
    with pytest.raises(ValueError, match=r"expected complex64 or complex128 and 2 dimensions"):
        to_image(value)


def test_half_precision_is_refused():
    with pytest.raises(ValueError, match="complex32"):
        to_kspace(torch.zeros(4, 4, dtype=torch.complex32))
