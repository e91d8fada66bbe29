"""Steps of preparation against closed forms: oversampling, prewhitening, crops, undersampling."""

from __future__ import annotations

import numpy as np
import pytest
from sciflow_mri.data import make_scan, noise_covariance, prepare
from sciflow_mri.data.noise import prewhiten
from sciflow_mri.data.oversampling import remove_oversampling
from sciflow_mri.data.retrospective import crop_kspace, undersample

from sciflow.errors import UserError

AXES = (-2, -1)


def to_kspace(image: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=AXES), norm="ortho"), axes=AXES).astype(np.complex64)


def to_image(kspace: np.ndarray) -> np.ndarray:
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(kspace, axes=AXES), norm="ortho"), axes=AXES)


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) + 1j * rng.normal(size=shape)


AFFINE = np.array([[0.0, -2, 0.3, -7], [1.5, 0, 0, 3], [0, 0.2, 4, 11], [0, 0, 0, 1]])


def scan_of(image: np.ndarray, mask: np.ndarray | None = None, **more):
    mask = np.ones(image.shape[-2], bool) if mask is None else mask
    return make_scan(
        to_kspace(image) * mask[:, None], mask=mask, **({"voxel_size_mm": (4.0, 2.0, 1.5), "affine": AFFINE} | more)
    )


@pytest.mark.parametrize(("width", "keep"), [(32, 16), (33, 16), (32, 15), (31, 31), (64, 37)])
def test_oversampling_is_cropped_in_image_space(width: int, keep: int) -> None:
    first = width // 2 - keep // 2
    image = np.zeros((2, 3, 11, width), complex)
    image[..., first : first + keep] = noise(2, 3, 11, keep)
    scan = remove_oversampling(scan_of(image, attrs={"readout_keep": keep}))
    np.testing.assert_allclose(to_image(scan["kspace"].values), image[..., first : first + keep], atol=1e-5)
    assert scan.attrs["oversampling_removed"] == 1 and "readout_keep" not in scan.attrs
    assert scan.attrs["voxel_size_mm"] == [4.0, 2.0, 1.5]
    # the first voxel that is left stays where it was
    np.testing.assert_allclose(np.reshape(scan.attrs["affine"], (4, 4)) @ [0, 0, 0, 1], AFFINE @ [first, 0, 0, 1])
    np.testing.assert_allclose(scan["kx"], np.fft.fftshift(np.fft.fftfreq(keep, 1.5)))


def test_oversampling_keeps_lines_mask_and_noise_level() -> None:
    mask = np.array([1, 0, 1, 1, 1, 1, 0, 1], bool)
    kspace = noise(1, 4, 8, 4096).astype(np.complex64) * mask[:, None]
    scan = remove_oversampling(make_scan(kspace, mask=mask), 2)
    np.testing.assert_array_equal(scan["mask"], mask)
    assert not scan["kspace"].values[:, :, ~mask].any()
    measured = scan["kspace"].values[:, :, mask]
    # 49,152 samples with a relative standard error of .0045 of their variance: 5 of these are passed once in 1.7 million
    assert np.mean(np.abs(measured) ** 2) / 2 == pytest.approx(1, abs=5 * 0.0045)


def test_oversampling_that_cannot_be_removed() -> None:
    scan = scan_of(noise(1, 1, 8, 8))
    with pytest.raises(UserError, match=r"does not state the readout oversampling; pass oversampling=2"):
        remove_oversampling(scan)
    for factor in (0.5, 100.0, -1.0):
        with pytest.raises(UserError, match=r"readout pixels would be left"):
            prepare(scan, oversampling=factor)
    with pytest.raises(UserError, match=r"does not state"):
        prepare(scan, oversampling=True)
    assert prepare(scan).attrs["oversampling_removed"] == 0
    assert prepare(scan_of(noise(1, 1, 8, 8), attrs={"readout_keep": 4}), oversampling=None).sizes["kx"] == 8


def test_covariance_in_closed_form() -> None:
    mixing = np.array([[2, 0, 0], [0.5 + 1j, 1, 0], [0.2, -0.3j, 0.7]])
    base = np.linalg.qr(noise(40, 3))[0].T * np.sqrt(2 * 40)  # rows orthogonal, variance exactly 1 per part
    np.testing.assert_allclose(noise_covariance(mixing @ base), mixing @ mixing.conj().T, atol=1e-12)


def test_prewhitened_noise_is_independent_and_of_unit_size() -> None:
    mixing = np.array([[2, 0, 0], [0.5 + 1j, 1, 0], [0.2, -0.3j, 0.7]])
    samples = 40_000
    kspace = np.einsum("dc,scyx->sdyx", mixing, noise(1, 3, 100, 400, seed=2)).astype(np.complex64)
    scan = make_scan(kspace, mask=np.ones(100, bool), noise=mixing @ noise(3, samples))
    white = prepare(scan)
    # entries have standard errors of at most 1/sqrt(40,000) from the covariance and from the data: 5 of their root sum are
    # passed by one of 9 entries once in 200,000
    found = noise_covariance(white["kspace"].values[0].reshape(3, -1))
    np.testing.assert_allclose(found, np.eye(3), atol=5 * np.sqrt(2 / samples))
    np.testing.assert_allclose(noise_covariance(white["noise"].values), np.eye(3), atol=1e-5)
    assert white.attrs["prewhitened"] == 1 and white.attrs["noise_sigma"] == 1.0
    assert "prewhitened" not in prepare(scan, prewhiten=False).attrs


def test_prewhitening_keeps_what_the_coils_say_together() -> None:
    kspace, mixing = noise(1, 3, 8, 8).astype(np.complex64), np.array([[2, 0, 0], [0.5 + 1j, 1, 0], [0.2, -0.3j, 0.7]])
    outside = mixing @ noise(3, 500)
    white = prewhiten(make_scan(kspace, mask=np.ones(8, bool)), noise=outside)
    precision = np.linalg.inv(noise_covariance(outside))
    np.testing.assert_allclose(
        np.einsum("scyx,scyx->yx", white["kspace"].values.conj(), white["kspace"].values),
        np.einsum("scyx,cd,sdyx->yx", kspace.conj(), precision, kspace),
        rtol=1e-4,
        atol=1e-4,
    )


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        (None, r"prewhitening needs noise samples and the file has none"),
        (noise(2, 50), r"noise has shape \(2, 50\), \(3 coils, samples\) is needed"),
        (noise(3, 20), r"20 noise samples for 3 coils; "),
        (noise(3, 50) * [[1], [0], [1]], r"the noise samples of coil 1 are all zero"),
        (noise(3, 50) * np.where(np.arange(50) == 7, np.nan, 1), r"3 noise samples are NaN or infinite"),
        (np.repeat(noise(1, 50), 3, axis=0), r"the noise of some coils is a copy of others"),
    ],
)
def test_noise_that_cannot_whiten(samples: np.ndarray | None, message: str) -> None:
    with pytest.raises(UserError, match=message):
        prepare(make_scan(noise(1, 3, 8, 8), mask=np.ones(8, bool)), prewhiten=True, noise=samples)


@pytest.mark.parametrize(
    ("shape", "size"), [((24, 30), (12, 10)), ((25, 31), (12, 11)), ((24, 31), (13, 16)), ((23, 30), (23, 15))]
)
def test_a_crop_of_k_space_keeps_places_and_field_of_view(shape: tuple[int, int], size: tuple[int, int]) -> None:
    # a smooth blob whose transform is inside the crop: its centre of mass in mm must not move
    y, x = np.meshgrid(np.arange(shape[0]), np.arange(shape[1]), indexing="ij")
    blob = np.exp(-((y - 0.6 * shape[0]) ** 2) / (0.11 * shape[0]) ** 2 - (x - 0.45 * shape[1]) ** 2 / (0.11 * shape[1]) ** 2)
    scan = crop_kspace(scan_of(blob[None, None]), size)

    def centre(image: np.ndarray, affine: np.ndarray) -> np.ndarray:
        weight = np.abs(image) ** 2
        mean = [(np.indices(image.shape)[axis] * weight).sum() / weight.sum() for axis in (1, 0)]
        return affine @ [*mean, 0, 1]

    there = centre(to_image(scan["kspace"].values)[0, 0], np.reshape(scan.attrs["affine"], (4, 4)))
    np.testing.assert_allclose(there, centre(blob, AFFINE), atol=2e-2)
    field = [count * voxel for count, voxel in zip(size, scan.attrs["voxel_size_mm"][1:], strict=True)]
    np.testing.assert_allclose(field, [shape[0] * 2.0, shape[1] * 1.5])
    np.testing.assert_allclose(
        np.linalg.norm(np.reshape(scan.attrs["affine"], (4, 4))[:3, 1]), np.sqrt(4.04) * shape[0] / size[0]
    )
    # the zero frequency stays at n//2, the frequencies keep their values
    assert scan["ky"].values[size[0] // 2] == 0 == scan["kx"].values[size[1] // 2]
    assert np.diff(scan["ky"])[0] == pytest.approx(1 / (shape[0] * 2.0))
    assert scan.attrs["retrospective"] == f"k-space cropped from {shape[0]} x {shape[1]} to {size[0]} x {size[1]} (ky, kx)"


def test_crop_and_undersampling_are_labelled_and_calibrated_anew() -> None:
    scan = prepare(
        scan_of(noise(1, 2, 24, 32)), oversampling=2, size=16, undersample=np.array([0, 1] * 3 + [1] * 6 + [0, 1] * 2)
    )
    assert dict(scan.sizes) == {"slice": 1, "coil": 2, "ky": 16, "kx": 16}
    assert scan.attrs["calibration"] == [5, 12]
    assert scan.attrs["retrospective"] == "k-space cropped from 24 x 16 to 16 x 16 (ky, kx); undersampled to 11 of 16 lines"
    assert not scan["kspace"].values[:, :, ~scan["mask"].values].any()
    assert "retrospective" not in prepare(scan_of(noise(1, 2, 24, 32))).attrs


def test_undersampling_changes_nothing_that_is_kept_and_leaves_nothing_else() -> None:
    image, mask = noise(1, 2, 12, 9), np.random.default_rng(0).uniform(size=(12, 9)) < 0.5
    mask[4:9, 2:7] = True
    full = scan_of(image)
    scan = undersample(full, mask)
    np.testing.assert_array_equal(scan["kspace"], np.where(mask, full["kspace"], 0))
    assert scan["mask"].dims == ("ky", "kx") and scan.attrs["calibration_kx"][0] <= 2
    lines = np.array([1, 0] * 2 + [1] * 5 + [0, 1, 0], bool)
    again = undersample(scan, lines)
    np.testing.assert_array_equal(again["mask"], mask & lines[:, None])
    cropped = crop_kspace(scan, (5, 5))
    assert cropped["mask"].dims == ("ky",) and cropped["mask"].values.all() and "calibration_kx" not in cropped.attrs


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(7), r"mask to undersample with has shape \(7,\), k-space "),
        (np.full(8, 0.5), r"must hold 0 and 1 only"),
        (np.ones(8), r"asks for 1 lines or points that were not measured"),
        (np.zeros(8), r"nothing was measured"),
        (np.array([1, 1, 1, 0, 0, 1, 0, 1]), r"no calibration lines: no measured lines around the centre, ky = 4 of 8"),
        (np.array([1, 0, 0, 1, 1, 1, 0, 1]), r"no calibration lines: only 3 fully sampled lines around the centre.*need 4"),
    ],
)
def test_masks_that_cannot_be_used(mask: np.ndarray, message: str) -> None:
    measured = np.array([1, 1, 1, 1, 1, 1, 0, 1], bool)
    with pytest.raises(UserError, match=message):
        prepare(scan_of(noise(1, 1, 8, 8), measured), undersample=mask)


def test_crops_that_do_not_fit() -> None:
    for size in (9, (4, 9), 1, (0, 4)):
        with pytest.raises(UserError, match=r"k-space has 8 x 8 points \(ky, kx\), .* cannot be cropped from it"):
            prepare(scan_of(noise(1, 1, 8, 8)), size=size)
    assert crop_kspace(scan_of(noise(1, 1, 8, 8)), 8).attrs.get("retrospective") is None


def test_a_scan_is_not_changed_by_its_preparation() -> None:
    scan = scan_of(noise(1, 2, 16, 16), noise=noise(2, 40), attrs={"readout_keep": 8})
    before = scan.copy(deep=True)
    prepare(scan, size=8, undersample=np.ones(8, bool))
    assert before.identical(scan)


@pytest.mark.data
def test_the_real_scan_cropped_to_64(science_data) -> None:
    from sciflow_mri.data import read

    [full] = read(science_data / "mri" / "full.cfl")
    scan = prepare(full, size=64)
    energy = (np.abs(scan["kspace"].values[0]) ** 2).sum(0)
    assert np.unravel_index(energy.argmax(), energy.shape) == (32, 32)
    np.testing.assert_array_equal(scan["kspace"], full["kspace"][:, :, 115 - 32 : 115 + 32, 90 - 32 : 90 + 32])
