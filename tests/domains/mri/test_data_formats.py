"""BART, NumPy and fastMRI: round trips, what each format states, and damaged files."""

from __future__ import annotations

import h5py
import numpy as np
import pytest
from sciflow_mri.data import check, make_scan, prepare, read
from sciflow_mri.data.formats.bart import read_cfl, write_cfl
from sciflow_mri.data.formats.fastmri import write_fastmri
from sciflow_mri.data.formats.numpy_files import write_npz

from sciflow.errors import UserError


def noise(*shape: int, seed: int = 1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def scan_with_everything(slices: int = 2, coils: int = 3, lines: int = 13, width: int = 16):
    mask = np.ones(lines, bool)
    mask[[1, -3]] = False
    affine = np.array([[0.0, 2, 0, -7], [1.5, 0, 0, 3], [0, 0, 4, 11], [0, 0, 0, 1]])
    return make_scan(
        noise(slices, coils, lines, width) * mask[:, None],
        mask=mask,
        noise=noise(coils, 40),
        calibration=(4, 9),
        voxel_size_mm=(4.0, 2.0, 1.5),
        affine=affine,
        slices=np.array([-3.0, 1.0])[:slices],
        attrs={"readout_keep": 8},
    )


def assert_same(scan, other, *names: str) -> None:
    for name in ("kspace", "mask", *names):
        np.testing.assert_array_equal(scan[name], other[name])
    for axis in ("ky", "kx"):
        np.testing.assert_allclose(scan[axis], other[axis])


def test_bart_keeps_fortran_order_and_every_dimension(tmp_path) -> None:
    array = noise(2, 3, 1, 4, 1, 5)
    write_cfl(tmp_path / "a", array)
    np.testing.assert_array_equal(read_cfl(tmp_path / "a.hdr"), array)
    # the format in its own words: text, then numbers with the first index fastest
    assert (tmp_path / "a.hdr").read_text() == "# Dimensions\n2 3 1 4 1 5\n"
    np.testing.assert_array_equal(np.fromfile(tmp_path / "a.cfl", "<c8")[:2], array[:, 0, 0, 0, 0, 0])
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.cfl", "a.hdr"]


@pytest.mark.parametrize("name", ["a", "a.cfl", "a.hdr"])
def test_bart_with_and_without_a_readout_dimension(name: str, tmp_path) -> None:
    kspace = noise(1, 3, 10, 8)
    write_cfl(tmp_path / "a", kspace[0].transpose(1, 2, 0)[None])  # 1, PHS1, PHS2, COIL
    [scan] = read(tmp_path / name)
    np.testing.assert_array_equal(scan["kspace"], kspace)
    write_cfl(tmp_path / "a", kspace[0].transpose(2, 1, 0)[:, :, None])  # READ, PHS1, 1, COIL
    [scan] = read(tmp_path / name)
    np.testing.assert_array_equal(scan["kspace"], kspace)
    assert scan.attrs["format"] == "bart" and scan.attrs["source"] == "a.cfl"
    assert {len(scan.attrs[name]) for name in ("source_sha256", "header_sha256")} == {64}


def test_sha256_is_that_of_the_file(tmp_path) -> None:
    (tmp_path / "a.hdr").write_text("# Dimensions\n1 2 2 1\n# Command\nphantom\n")
    (tmp_path / "a.cfl").write_bytes(np.ones(4, "<c8").tobytes())
    [scan] = read(tmp_path / "a.cfl")
    # printf of four complex ones | sha256sum
    import hashlib

    assert scan.attrs["source_sha256"] == hashlib.sha256(b"\x00\x00\x80\x3f\x00\x00\x00\x00" * 4).hexdigest()


def test_npz_round_trip_of_everything(tmp_path) -> None:
    scan = scan_with_everything()
    write_npz(tmp_path / "a.npz", scan)
    [back] = read(tmp_path / "a.npz")
    assert_same(back, scan, "noise", "slice", "coil")
    for name in ("affine", "voxel_size_mm", "calibration", "readout_keep", "units"):
        assert back.attrs[name] == scan.attrs[name]


def test_npz_of_different_sizes_and_coil_counts_is_a_list(tmp_path) -> None:
    scans = [scan_with_everything(), scan_with_everything(coils=5, lines=20, slices=1), scan_with_everything(width=11)]
    write_npz(tmp_path / "a.npz", scans)
    back = read(tmp_path / "a.npz")
    assert len(back) == 3 and back[1].attrs["part"] == "kspace_1"
    for one, other in zip(back, scans, strict=True):
        assert_same(one, other, "noise")


def test_npz_of_a_two_dimensional_mask(tmp_path) -> None:
    mask = np.random.default_rng(0).uniform(size=(12, 14)) < 0.5
    mask[4:9, 5:10] = True
    write_npz(tmp_path / "a.npz", make_scan(noise(1, 2, 12, 14) * mask, mask=mask))
    [back] = read(tmp_path / "a.npz")
    np.testing.assert_array_equal(back["mask"], mask)


@pytest.mark.parametrize("axes", [None, "coil kx ky", "ky, kx, coil"])
def test_numpy_axes_by_name(axes: str | None, tmp_path) -> None:
    kspace = noise(1, 3, 6, 8)
    order = {None: (0, 1, 2), "coil kx ky": (0, 2, 1), "ky, kx, coil": (1, 2, 0)}[axes]
    np.save(tmp_path / "a.npy", kspace[0].transpose(order))
    [scan] = read(tmp_path / "a.npy", axes=axes)
    np.testing.assert_array_equal(scan["kspace"], kspace)


def test_fastmri_round_trip(tmp_path) -> None:
    scan = scan_with_everything()
    write_fastmri(tmp_path / "a.h5", scan)
    [back] = read(tmp_path / "a.h5")
    assert_same(back, scan)
    assert back.attrs["voxel_size_mm"] == pytest.approx(scan.attrs["voxel_size_mm"])
    assert back.attrs["readout_keep"] == 8
    with h5py.File(tmp_path / "a.h5") as file:
        assert file["kspace"].shape == (2, 3, 16, 13)  # readout before phase


def fastmri(path, kspace: np.ndarray, lines: int, last: int, centre: int, **attrs):
    """A file as the data set has them, its header made by hand."""
    text = (
        '<?xml version="1.0" encoding="utf-8"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding><encodedSpace>'
        f"<matrixSize><x>{kspace.shape[2]}</x><y>{lines}</y><z>1</z></matrixSize><fieldOfView_mm><x>440</x><y>220</y><z>5</z>"
        "</fieldOfView_mm></encodedSpace><reconSpace><matrixSize><x>8</x><y>8</y><z>1</z></matrixSize><fieldOfView_mm><x>220</x>"
        "<y>220</y><z>5</z></fieldOfView_mm></reconSpace><encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>"
        f"{last}</maximum><center>{centre}</center></kspace_encoding_step_1></encodingLimits><trajectory>cartesian</trajectory>"
        "</encoding></ismrmrdHeader>"
    )
    with h5py.File(path, "w") as file:
        file["kspace"], file["ismrmrd_header"] = kspace, text.encode()
        for name, value in attrs.items():
            if name == "mask":
                file["mask"] = value
            else:
                file.attrs[name] = value
    return path


def test_fastmri_padding_is_unmeasured_although_the_mask_says_otherwise(tmp_path) -> None:
    kspace = noise(2, 3, 16, 12)
    kspace[..., :2] = kspace[..., 10:] = 0
    path = fastmri(tmp_path / "a.h5", kspace, 12, 7, 4, mask=np.ones(12, np.float32), patient_id="p", max=1.0)
    [scan] = read(path)
    np.testing.assert_array_equal(np.flatnonzero(scan["mask"]), np.arange(2, 10))
    assert scan.attrs["calibration"] == [2, 10] and scan.attrs["patient_id"] == "p" and scan.attrs["readout_keep"] == 8
    assert scan.attrs["voxel_size_mm"] == pytest.approx([5.0, 220 / 12, 440 / 16])


def test_fastmri_statement_of_the_centre_must_hold(tmp_path) -> None:
    kspace = noise(1, 2, 16, 12)
    kspace[..., [0, 2, 9]] = 0
    mask = np.ones(12, np.uint8)
    mask[[0, 2, 9]] = 0
    [scan] = read(fastmri(tmp_path / "a.h5", kspace, 12, 11, 6, mask=mask, num_low_frequency=4))
    assert scan.attrs["calibration"] == [4, 8]  # (12 - 4 + 1) // 2, as fastMRI places them
    with pytest.raises(UserError, match=r"a.h5: lines 2 to 9 are stated as calibration lines, but .* only from 3 to 8"):
        read(fastmri(tmp_path / "a.h5", kspace, 12, 11, 6, mask=mask, num_low_frequency=8))


def test_fastmri_of_one_coil_and_without_header(tmp_path) -> None:
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["kspace"] = noise(3, 8, 6)
    with pytest.raises(UserError, match=r"a.h5: no ismrmrd_header, .* pass header=False"):
        read(tmp_path / "a.h5")
    [scan] = read(tmp_path / "a.h5", header=False)
    assert dict(scan.sizes) == {"slice": 3, "coil": 1, "ky": 6, "kx": 8} and "voxel_size_mm" not in scan.attrs


def test_fastmri_reads_only_chosen_slices_and_transposes_on_request(tmp_path) -> None:
    kspace, mask = noise(4, 2, 16, 12), np.ones(12)
    mask[[1, 10]] = kspace[..., [1, 10]] = 0
    [scan] = read(fastmri(tmp_path / "a.h5", kspace, 12, 11, 6, mask=mask), slices=[3, 1])
    np.testing.assert_array_equal(scan["kspace"], kspace[[3, 1]].swapaxes(2, 3))
    np.testing.assert_allclose(scan["slice"], [15.0, 5.0])
    with pytest.raises(UserError, match=r"a.h5: slices=\[4\] must be different numbers from 0 to 3"):
        read(tmp_path / "a.h5", slices=[4])
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["kspace"]
        file["kspace"] = kspace.swapaxes(2, 3)
    with pytest.raises(UserError, match=r"states 16 readout points, kspace has 12; its axes are swapped: pass transpose=True"):
        read(tmp_path / "a.h5")
    [scan] = read(tmp_path / "a.h5", transpose=True)
    np.testing.assert_array_equal(scan["kspace"], kspace.swapaxes(2, 3))
    assert scan.attrs["readout_keep"] == 8 and scan.attrs["voxel_size_mm"] == pytest.approx([5.0, 220 / 12, 440 / 16])


def test_a_prepared_scan_comes_back_with_its_history(tmp_path) -> None:
    write_npz(tmp_path / "a.npz", scan_with_everything())
    [scan] = read(tmp_path / "a.npz")
    ready = prepare(scan, size=8)
    write_npz(tmp_path / "b.npz", ready)
    [back] = read(tmp_path / "b.npz")
    assert_same(back, ready, "noise")
    for name in (
        "retrospective",
        "prewhitened",
        "noise_sigma",
        "oversampling_removed",
        "affine",
        "voxel_size_mm",
        "calibration",
    ):
        assert back.attrs[name] == ready.attrs[name], name
    assert back.attrs["origin"] == "a.npz" and back.attrs["origin_sha256"] == scan.attrs["source_sha256"]
    assert prepare(back)["kspace"].values == pytest.approx(ready["kspace"].values, abs=1e-4)


def test_fastmri_writer_refuses_what_has_no_place(tmp_path) -> None:
    mask = np.eye(6, dtype=bool)
    with pytest.raises(UserError, match=r"masks over ky alone"):
        write_fastmri(tmp_path / "a.h5", make_scan(noise(1, 1, 6, 6) * mask, mask=mask))
    assert not list(tmp_path.iterdir())


def bad_file(case: str, folder):
    kspace = noise(1, 2, 8, 10)
    path = folder / {"cfl": "a.cfl", "h5": "a.h5", "npy": "a.npy", "npz": "a.npz"}.get(case.split()[0], "a.dat")
    match case:
        case "cfl alone":
            path.write_bytes(b"12345678")
        case "h5 truncated":
            write_fastmri(path, make_scan(noise(4, 8, 64, 64), mask=np.ones(64, bool)))
            path.write_bytes(path.read_bytes()[:-5000])
        case "h5 damaged":
            with h5py.File(path, "w") as file:
                file.create_dataset("kspace", data=noise(4, 8, 64, 64), compression="gzip", chunks=(1, 8, 64, 64))
            content = bytearray(path.read_bytes())
            content[-60000:-20000] = bytes(40000)
            path.write_bytes(content)
        case "h5 string":
            with h5py.File(path, "w") as file:
                file["kspace"] = "none"
        case "h5 text":
            path.write_text("kspace")
        case "h5 foreign":
            with h5py.File(path, "w") as file:
                file["image"] = 1
        case "h5 no XML" | "h5 radial" | "h5 3-D" | "h5 mask" | "h5 other size":
            mask = np.ones(9) if case == "h5 mask" else np.ones(8)
            fastmri(path, kspace.swapaxes(2, 3), 8, 7, 4, mask=mask)
            change = {"h5 no XML": ("</ismrmrdHeader>", ""), "h5 radial": ("cartesian", "radial")}
            change |= {"h5 3-D": ("<z>1</z>", "<z>32</z>"), "h5 other size": ("<x>10</x>", "<x>8</x>")}
            with h5py.File(path, "a") as file:
                text = file["ismrmrd_header"][()].decode().replace(*change.get(case, ("", "")))
                del file["ismrmrd_header"]
                file["ismrmrd_header"] = text.encode()
        case "npy objects":
            np.save(path, np.array([kspace, None], object))
        case "npy real":
            np.save(path, np.abs(kspace))
        case "npy integer":
            np.save(path, np.abs(kspace).astype(np.int16))
        case "npy axes":
            np.save(path, kspace[None])
        case "npy text":
            path.write_text("no array")
        case "npz truncated":
            write_npz(path, scan_with_everything())
            path.write_bytes(path.read_bytes()[:-300])
        case "npz foreign":
            np.savez(path, image=kspace)
        case "npz noise":
            np.savez(path, kspace=kspace, noise=noise(3, 40))
        case "npz affine":
            np.savez(path, kspace=kspace, affine=np.eye(3))
        case "dat":
            path.write_bytes(b"what is it")
        case "dat empty":
            path.touch()
        case "dat missing":
            pass
        case "folder":
            path = folder
        case _:
            write_cfl(path, np.zeros({"cfl 3-D": (4, 4, 4, 2), "cfl echoes": (4, 4, 1, 2, 1, 3)}.get(case, (1, 8, 6, 2))))
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("cfl alone", r"a.hdr: no such file; .* a.cfl alone cannot be read"),
        ("cfl 3-D", r"a.cfl: k-space is 3-D encoded \(4 x 4 x 4\)"),
        ("cfl echoes", r"a.cfl: dimension 5 \(TE\) is 3; take one of them"),
        ("cfl zeros", r"a.cfl: k-space is zero everywhere: nothing was measured"),
        ("h5 truncated", r"a.h5: the file is truncated"),
        ("h5 damaged", r"a.h5: HDF5 cannot read it"),
        ("h5 string", r"a.h5: k-space of type .* has no imaginary part"),
        ("h5 text", r"a.h5: it is no HDF5 file"),
        ("h5 foreign", r"a.h5: HDF5 without a dataset 'kspace' \(fastMRI\) .* it has: image"),
        ("h5 no XML", r"a.h5: its ISMRMRD header is no valid XML"),
        ("h5 radial", r"a.h5: its trajectory is radial"),
        ("h5 3-D", r"a.h5: 3-D encoded"),
        (
            "h5 other size",
            r"a.h5: the header states 8 readout points, kspace has 10; its axes are swapped: pass transpose=True",
        ),
        ("h5 mask", r"a.h5: its mask has shape \(9,\), k-space has 8 lines \(ky\) of 10 points"),
        ("npy objects", r"a.npy: cannot be read as NumPy file: it holds Python objects"),
        ("npy real", r"a.npy: k-space of type float32 and shape \(1, 2, 8, 10\) has no imaginary part"),
        ("npy integer", r"a.npy: k-space of type int16 .* has no imaginary part"),
        ("npy axes", r"a.npy: k-space has shape \(1, 1, 2, 8, 10\); .* axes='ky kx coil'"),
        ("npy text", r"a.npy: cannot be read as NumPy file: it is no NumPy file"),
        ("npz truncated", r"a.npz: cannot be read as NumPy file"),
        ("npz foreign", r"a.npz: no array 'kspace'; it has: image"),
        ("npz noise", r"a.npz: noise has shape \(3, 40\), \(2 coils, samples\) is needed"),
        ("npz affine", r"a.npz: affine has shape \(3, 3\), \(4, 4\) is needed"),
        ("dat", r"a.dat: unknown format '.dat'; readable are fastMRI"),
        ("dat empty", r"a.dat: the file is empty"),
        ("dat missing", r"a.dat: no such file"),
        ("folder", r"a folder; a raw scan is one file"),
    ],
)
def test_files_that_cannot_be_read_say_why(case: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(bad_file(case, tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("# Dimensions\n1 8 6 3\n", r"a.cfl: 768 bytes, but a.hdr says 1 x 8 x 6 x 3 complex numbers, 1152 bytes"),
        ("# Dimensions\n1 8 six\n", r"a.hdr: the line after '# Dimensions' must hold positive whole numbers, not '1 8 six'"),
        ("# Dimensions\n1 8 -6 2\n", r"a.hdr: the line after"),
        ("", r"a.hdr: the line after"),
    ],
)
def test_bart_header_that_does_not_fit(header: str, message: str, tmp_path) -> None:
    write_cfl(tmp_path / "a", noise(1, 8, 6, 2))
    (tmp_path / "a.hdr").write_text(header)
    with pytest.raises(UserError, match=message):
        read(tmp_path / "a.cfl")
    (tmp_path / "a.cfl").unlink()
    with pytest.raises(UserError, match=r"a.cfl: no such file"):
        read(tmp_path / "a.hdr")


def test_a_file_that_may_not_be_read(tmp_path, monkeypatch) -> None:
    np.save(tmp_path / "a.npy", noise(8, 8))

    def refuse(*_args, **_options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("sciflow_mri.data.reading.sha256_of", refuse)
    with pytest.raises(UserError, match=r"a.npy: cannot be read: Permission denied"):
        read(tmp_path / "a.npy")


def test_choices_that_do_not_fit(tmp_path) -> None:
    np.save(tmp_path / "a.npy", noise(2, 3, 8, 8))
    for choice, message in [
        ({"format": "dicom"}, r"format is 'dicom'; one of fastmri, mrd, bart, numpy"),
        ({"slices": [2]}, r"a.npy: slices=\[2\] must be different numbers from 0 to 1"),
        ({"coils": []}, r"a.npy: coils=\[\] must be"),
        ({"axes": "ky kx"}, r"a.npy: k-space has shape .* and axes are 'ky kx'"),
        ({"centre": (8, 0)}, r"a.npy: centre \(8, 0\) is not within its 8 x 8 points"),
        ({"centre": "origin"}, r"centre is 'origin'"),
        ({"centre": "peak"}, r"a.npy: no point of k-space stands out"),
        ({"mask": np.ones(7)}, r"a.npy: its mask has shape \(7,\)"),
    ]:
        with pytest.raises(UserError, match=message):
            read(tmp_path / "a.npy", **choice)
    [scan] = read(tmp_path / "a.npy", slices=[1], coils=[2, 0])
    np.testing.assert_array_equal(scan["kspace"], np.load(tmp_path / "a.npy")[1:, [2, 0]])
    assert scan["coil"].values.tolist() == [2, 0] and scan["slice"].values.tolist() == [1]


def test_nothing_is_left_where_a_scan_cannot_be_written(tmp_path) -> None:
    scan = check(scan_with_everything())
    scan["kspace"].values[0, 0, 0, 0] = np.nan
    for write in (write_npz, write_fastmri):
        with pytest.raises(UserError, match=r"k-space has 1 NaN"):
            write(tmp_path / "a", scan)
    assert not list(tmp_path.iterdir())
