"""What was measured, where the centre is, and what a scan must be, against cases with a known answer."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from sciflow_mri.data import check, make_scan, read
from sciflow_mri.data.centre import find_centre, recentre
from sciflow_mri.data.formats.bart import write_cfl
from sciflow_mri.data.geometry import frequencies
from sciflow_mri.data.sampling import calibration_of, detect_mask, reconcile

from sciflow.errors import UserError


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def bits(text: str) -> np.ndarray:
    return np.array([character == "1" for character in text])


@pytest.mark.parametrize(
    ("mask", "calibration"),
    [
        ("1111", (0, 4)),
        ("11111", (0, 5)),
        ("1010", (2, 3)),
        ("1101", (2, 2)),
        ("0111", (1, 4)),
        ("10111011", (2, 5)),
        ("110111101", (3, 7)),
        ("000011111", (4, 9)),
    ],
)
def test_calibration_lines_are_the_run_around_the_middle(mask: str, calibration: tuple[int, int]) -> None:
    assert calibration_of(bits(mask)) == (calibration, None)


def test_calibration_of_a_plane_is_its_largest_rectangle() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        mask = rng.uniform(size=(11, 14)) < 0.8
        mask[3:8, 5:10] = True
        best = 0
        for top in range(6):
            for bottom in range(6, 12):
                for left in range(8):
                    for right in range(8, 15):
                        if mask[top:bottom, left:right].all():
                            best = max(best, (bottom - top) * (right - left))
        lines, columns = calibration_of(mask)
        assert columns is not None and mask[slice(*lines), slice(*columns)].all()
        assert (lines[1] - lines[0]) * (columns[1] - columns[0]) == best
    mask[5, 7] = False
    assert calibration_of(mask) == ((5, 5), (7, 7))


def test_masks_found_in_k_space() -> None:
    lines = bits("1011101")
    points = np.repeat(lines[:, None], 40, axis=1)
    np.testing.assert_array_equal(detect_mask(points, "a"), lines)
    points[2, 3] = False  # an accidental zero of integer data
    np.testing.assert_array_equal(detect_mask(points, "a"), lines)
    echo = np.repeat(lines[:, None], 40, axis=1)
    echo[:, :1] = False  # one missing column is no accident
    np.testing.assert_array_equal(detect_mask(echo, "a"), echo)
    plane = np.random.default_rng(0).uniform(size=(20, 30)) < 0.4
    np.testing.assert_array_equal(detect_mask(plane, "a"), plane)


def test_swapped_axes_are_named_and_transposed(tmp_path) -> None:
    kspace = noise(1, 2, 16, 12)
    kspace[..., bits("000110111001") == 0] = 0
    np.save(tmp_path / "a.npy", kspace)
    with pytest.raises(UserError, match=r"a.npy: the 6 missing lines of 12 run along kx, .* swapped; pass transpose=True"):
        read(tmp_path / "a.npy")
    [scan] = read(tmp_path / "a.npy", transpose=True)
    np.testing.assert_array_equal(scan["kspace"], kspace.swapaxes(2, 3))
    np.testing.assert_array_equal(scan["mask"], bits("000110111001"))
    np.savez(
        tmp_path / "b.npz", kspace=kspace, mask=bits("000110111001"), voxel_size_mm=(3, 2, 1), affine=np.diag([1, 2, 3, 1])
    )
    with pytest.raises(UserError, match=r"pass transpose=True"):
        read(tmp_path / "b.npz")
    [scan] = read(tmp_path / "b.npz", transpose=True)
    assert scan.attrs["voxel_size_mm"] == [3, 1, 2]
    # voxel (x, y) of the transposed image is (y, x) of the file's
    np.testing.assert_array_equal(np.reshape(scan.attrs["affine"], (4, 4)) @ [5, 7, 0, 1], [7, 10, 0, 1])


@pytest.mark.parametrize(
    ("stated", "message"),
    [
        ("10111001", r"a: k-space is not zero on 1 lines that its mask calls unmeasured; .*prepare\(scan, undersample=mask\)"),
        ("11111101", r"a: its mask calls 1 lines measured on which k-space is zero in every coil"),
        ("1011110", r"a: its mask has shape \(7,\), k-space has 8 lines \(ky\) of 10 points"),
        ("1011110111", r"a: its mask has shape \(10,\).*it fits kx: pass transpose=True"),
    ],
)
def test_a_mask_that_contradicts_k_space(stated: str, message: str) -> None:
    points = np.repeat(bits("10111101")[:, None], 10, axis=1)
    np.testing.assert_array_equal(reconcile(bits("10111101"), bits("10111101"), points, "a"), bits("10111101"))
    with pytest.raises(UserError, match=message):
        reconcile(bits(stated), detect_mask(points, "a"), points, "a")


def test_a_mask_of_points_against_k_space() -> None:
    points = np.random.default_rng(0).uniform(size=(20, 30)) < 0.5
    assert reconcile(points.astype(float), points, points, "a").dtype == bool
    wrong = points.copy()
    wrong[0] = True
    with pytest.raises(UserError, match=r"points measured on which k-space is zero"):
        reconcile(wrong, points, points, "a")
    with pytest.raises(UserError, match=r"points that its mask calls unmeasured"):
        reconcile(points & wrong[::-1], points, points, "a")
    with pytest.raises(UserError, match=r"must hold 0 and 1 only, it has values from 0 to 2"):
        reconcile(points * 2, points, points, "a")
    whole = np.repeat(bits("1011")[:, None], 30, axis=1)
    np.testing.assert_array_equal(reconcile(whole, bits("1011"), whole, "a"), bits("1011"))


def test_coarse_integers_need_no_statement(tmp_path) -> None:
    mask = bits("1" * 6 + "0" + "1" * 9)
    rng = np.random.default_rng(2)
    # 0.6 % exact zeros in both coils
    kspace = rng.integers(-5, 6, size=(1, 1, 16, 400, 2), dtype=np.int16) * mask[:, None, None]
    np.save(tmp_path / "a.npy", kspace)
    [scan] = read(tmp_path / "a.npy")
    np.testing.assert_array_equal(scan["mask"], mask)


@pytest.mark.parametrize("shape", [(12, 16), (13, 16), (12, 15), (11, 17)])
@pytest.mark.parametrize("offset", [(1, -1), (-2, 0), (3, 2)])
def test_recentring_undoes_a_shift_of_k_space(shape: tuple[int, int], offset: tuple[int, int], tmp_path) -> None:
    height, width = shape
    y, x = np.meshgrid(np.arange(height) - height // 2, np.arange(width) - width // 2, indexing="ij")
    truth = (1e4 * np.exp(-(y**2 + x**2) / 2) + noise(1, 3, *shape)).astype(np.complex64)
    there = (height // 2 + offset[0], width // 2 + offset[1])
    shifted = np.roll(truth, offset, axis=(2, 3))
    assert find_centre(shifted) == there
    np.testing.assert_array_equal(recentre(shifted, there), truth)
    write_cfl(tmp_path / "a", shifted[0].transpose(1, 2, 0)[None])
    [scan] = read(tmp_path / "a.cfl")
    np.testing.assert_array_equal(scan["kspace"], truth)
    assert scan.attrs["recentred_from"] == list(there)
    [scan] = read(tmp_path / "a.cfl", centre="middle")
    np.testing.assert_array_equal(scan["kspace"], shifted)
    [scan] = read(tmp_path / "a.cfl", centre=there)
    np.testing.assert_array_equal(scan["kspace"], truth)


def test_recentring_is_a_linear_phase_of_the_image() -> None:
    kspace = noise(1, 1, 12, 15)

    def image(k):
        return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(k, axes=(-2, -1)), norm="ortho"), axes=(-2, -1))

    before, after = image(kspace)[0, 0], image(recentre(kspace, (7, 5)))[0, 0]
    np.testing.assert_allclose(np.abs(after), np.abs(before), rtol=1e-4, atol=1e-5)
    y, x = np.meshgrid(np.arange(12) - 6, np.arange(15) - 7, indexing="ij")
    np.testing.assert_allclose(after, before * np.exp(-2j * np.pi * (y * 1 / 12 - x * 2 / 15)), atol=1e-5)


def test_noise_has_no_centre_and_masks_move_with_it(tmp_path) -> None:
    assert find_centre(noise(1, 8, 64, 64)) is None
    assert find_centre(noise(1, 1, 256, 256, seed=5)) is None
    kspace, mask = noise(1, 2, 12, 16), bits("101011111011")
    kspace[0, :, 7, 8] = 1e4
    np.savez(tmp_path / "a.npz", kspace=kspace * mask[:, None], mask=mask, calibration=[5, 9])
    [scan] = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(scan["mask"], np.roll(mask, -1))
    assert scan.attrs["calibration"] == [4, 8]


def test_slices_with_other_masks_are_scans_of_their_own(tmp_path) -> None:
    kspace = noise(4, 2, 8, 10)
    kspace[[0, 2], :, 1] = 0
    np.savez(tmp_path / "a.npz", kspace=kspace, voxel_size_mm=(5, 1, 1), affine=np.diag([1, 1, 5, 1]))
    even, odd = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(even["kspace"], kspace[[0, 2]])
    np.testing.assert_array_equal(odd["slice"], [5, 15])
    assert even.attrs["part"] == "slices 0, 2" and odd.attrs["part"] == "slices 1, 3"
    # every second slice: the step doubles and the origin is that of slice 1
    np.testing.assert_array_equal(np.reshape(odd.attrs["affine"], (4, 4))[:3, 2:], [[0, 0], [0, 0], [10, 5]])
    [uneven] = read(tmp_path / "a.npz", slices=[0, 2, 1])[:1]
    assert uneven.sizes["slice"] == 2
    np.savez(tmp_path / "b.npz", kspace=noise(4, 2, 8, 10), voxel_size_mm=(5, 1, 1), affine=np.diag([1, 1, 5, 1]))
    assert "affine" not in read(tmp_path / "b.npz", slices=[0, 1, 3])[0].attrs


def changed(**values) -> xr.Dataset:
    scan = make_scan(noise(2, 3, 8, 10), mask=np.ones(8, bool), noise=noise(3, 50), attrs={"source": "a.npy"})
    for place, value in values.get("kspace", []):
        scan["kspace"].values[place] = value
    return scan.assign({name: value for name, value in values.items() if name != "kspace"})


@pytest.mark.parametrize(
    ("scan", "message"),
    [
        (lambda: xr.Dataset(), r"scan: a scan is a Dataset with the variables kspace and mask"),
        (lambda: changed().rename(ky="y"), r"a.npy: kspace has dimensions \('slice', 'coil', 'y', 'kx'\)"),
        (lambda: changed().assign(kspace=changed()["kspace"].real), r"a.npy: kspace is float32, complex64 is needed"),
        (lambda: changed(mask=("kx", np.ones(10, bool))), r"a.npy: mask is bool over \('kx',\)"),
        (lambda: changed(mask=("ky", np.ones(8))), r"a.npy: mask is float64"),
        (lambda: changed(kspace=[((1, 2, 3, 4), np.nan)]), r"a.npy: k-space has 1 NaN .* = \(1, 2, 3, 4\)"),
        (lambda: changed(kspace=[((0, 1, 3), np.inf)]), r"a.npy: k-space has 10 NaN or infinite .* = \(0, 1, 3, 0\)"),
        (lambda: changed(kspace=[((slice(None), 1), 0)]), r"a.npy: k-space is zero everywhere in coils 1; .* coils=\[0, 2\]"),
        (lambda: changed(kspace=[(0, 0)]), r"a.npy: k-space is zero everywhere in slices 0; .* slices=\[1\]"),
        (lambda: changed(kspace=[(..., 0)]), r"a.npy: k-space is zero everywhere: nothing"),
        (lambda: changed(mask=("ky", bits("10111101"))), r"a.npy: k-space is not zero on 2 lines outside its mask"),
        (lambda: changed(mask=(("ky", "kx"), np.eye(8, 10) > 0)), r"a.npy: k-space is not zero on 72 points outside its mask"),
        (lambda: changed(noise=("sample", np.ones(3))), r"a.npy: noise has dimensions \('sample',\)"),
        (lambda: changed(noise=(("coil", "sample"), np.full((3, 2), np.nan))), r"a.npy: noise has 6 NaN"),
        (lambda: changed().assign_attrs(calibration=[4, 9]), r"a.npy: calibration \[4, 9\] holds unmeasured lines"),
    ],
)
def test_the_contract_is_checked(scan, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check(scan())


def test_dead_coils_and_slices_of_a_file_are_named_with_their_numbers(tmp_path) -> None:
    kspace = noise(3, 4, 8, 10)
    kspace[:, 2] = 0
    np.save(tmp_path / "a.npy", kspace)
    with pytest.raises(UserError, match=r"a.npy: k-space is zero everywhere in coils 2; leave them out with coils=\[3, 1\]"):
        read(tmp_path / "a.npy", coils=[3, 2, 1])
    assert read(tmp_path / "a.npy", coils=[3, 1])[0].sizes["coil"] == 2
    kspace[1] = 0
    np.save(tmp_path / "a.npy", kspace)
    with pytest.raises(UserError, match=r"a.npy: k-space is zero everywhere in slices 1; leave them out with slices=\[0, 2\]"):
        read(tmp_path / "a.npy")
    kspace[0, 0, 4, 5] = np.nan
    np.save(tmp_path / "a.npy", kspace)
    with pytest.raises(UserError, match=r"a.npy: k-space has 1 NaN or infinite values, the first at .* = \(0, 0, 4, 5\)"):
        read(tmp_path / "a.npy")


def test_frequencies_are_those_of_numpy() -> None:
    for count in (8, 9):
        np.testing.assert_allclose(frequencies(count, 1.5), np.fft.fftshift(np.fft.fftfreq(count, 1.5)))


@pytest.mark.data
def test_the_real_scan_comes_to_the_middle(science_data) -> None:
    [scan] = read(science_data / "mri" / "full.cfl")
    assert dict(scan.sizes) == {"slice": 1, "coil": 8, "ky": 230, "kx": 180}
    assert scan.attrs["recentred_from"] == [116, 89] and scan.attrs["calibration"] == [0, 230]
    energy = (np.abs(scan["kspace"].values[0]) ** 2).sum(0)
    assert np.unravel_index(energy.argmax(), energy.shape) == (115, 90)
