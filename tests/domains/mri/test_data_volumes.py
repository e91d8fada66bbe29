"""NIfTI files and DICOM folders as volumes: values, places in mm, and files that cannot be read."""

from __future__ import annotations

import nibabel
import numpy as np
import pydicom
import pytest
import xarray as xr
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from sciflow_mri.data import read_volume, write_volume

from sciflow.errors import UserError

# a tilted frame: x to the left and up, y forward, z the normal of both
ANGLE = 0.3
ROW = np.array([np.cos(ANGLE), 0, np.sin(ANGLE)])
COLUMN = np.array([0.0, 1, 0])
NORMAL = np.cross(ROW, COLUMN)
SIZE = (7, 5, 4)  # x, y, z
ORIGIN = np.array([-12.0, 8.0, 30.0])


def voxels(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 900, SIZE).astype(np.uint16)


def lps_affine() -> np.ndarray:
    affine = np.eye(4)
    affine[:3] = np.stack([ROW * 1.5, COLUMN * 2.0, NORMAL * 3.0, ORIGIN], axis=1)
    return affine


def ras_affine() -> np.ndarray:
    return np.diag([-1.0, -1, 1, 1]) @ lps_affine()


def dicom_slice(path, pixels: np.ndarray, z: int, series: str = "1.2.3", **more) -> None:
    """One slice (x, y) written by pydicom."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID = "1.2.840.10008.5.1.4.1.1.4", generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    one = FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    one.SOPClassUID, one.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    one.Modality, one.SeriesInstanceUID = "MR", series
    one.ImageOrientationPatient = [float(number) for number in (*ROW, *COLUMN)]
    one.ImagePositionPatient = [float(number) for number in ORIGIN + 3.0 * z * NORMAL]
    one.PixelSpacing = [2.0, 1.5]  # between rows, between columns
    one.SliceThickness = 2.5
    one.Rows, one.Columns = pixels.shape[1], pixels.shape[0]
    one.SamplesPerPixel, one.PhotometricInterpretation = 1, "MONOCHROME2"
    one.BitsAllocated = one.BitsStored = 16
    one.HighBit, one.PixelRepresentation = 15, 0
    one.PixelData = np.ascontiguousarray(pixels.T).tobytes()
    for name, value in more.items():
        if value is None:
            delattr(one, name)
        else:
            setattr(one, name, value)
    one.save_as(path, enforce_file_format=True)


def dicom_folder(folder, order=(2, 0, 3, 1), **more):
    folder.mkdir(exist_ok=True)
    for index, z in enumerate(order):
        dicom_slice(folder / f"im{index}.dcm", voxels()[..., z], z, **more)
    return folder


def nifti(path, values: np.ndarray, affine: np.ndarray | None = None):
    nibabel.save(nibabel.Nifti1Image(values, ras_affine() if affine is None else affine), path)
    return path


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_nifti_is_read_as_z_y_x(suffix: str, tmp_path) -> None:
    volume = read_volume(nifti(tmp_path / f"a{suffix}", voxels()), canonical=False)
    assert volume.dims == ("z", "y", "x") and volume.dtype == np.float32
    np.testing.assert_array_equal(volume, voxels().T)
    np.testing.assert_allclose(volume.attrs["voxel_size_mm"], [3.0, 2.0, 1.5])
    np.testing.assert_allclose(np.reshape(volume.attrs["affine"], (4, 4)), ras_affine(), atol=1e-6)
    assert volume.attrs["source"] == f"a{suffix}" and len(volume.attrs["source_sha256"]) == 64


def test_nifti_and_dicom_give_the_same_volume(tmp_path) -> None:
    from_nifti = read_volume(nifti(tmp_path / "a.nii.gz", voxels()))
    from_dicom = read_volume(dicom_folder(tmp_path / "series"))
    np.testing.assert_array_equal(from_dicom, from_nifti)
    np.testing.assert_allclose(from_dicom.attrs["affine"], from_nifti.attrs["affine"], atol=1e-5)
    assert from_dicom.attrs["format"] == "dicom" and from_dicom.attrs["source"] == "series"


def test_turning_moves_no_voxel(tmp_path) -> None:
    turned = read_volume(dicom_folder(tmp_path / "a"))
    plain = read_volume(tmp_path / "a", canonical=False)
    np.testing.assert_array_equal(plain, voxels().T)

    def places(volume: xr.DataArray) -> dict:
        affine = np.reshape(volume.attrs["affine"], (4, 4))
        index = np.argwhere(np.ones(volume.shape, bool))
        mm = np.round(np.c_[index[:, ::-1], np.ones(len(index))] @ affine.T, 3)[:, :3] + 0.0
        return {tuple(place): float(volume.values[tuple(at)]) for place, at in zip(mm.tolist(), index, strict=True)}

    assert places(turned) == places(plain)
    # x to the right, y forward, z up
    assert (np.diag(np.reshape(turned.attrs["affine"], (4, 4)))[:3] > 0).all()


def test_slope_and_intercept_and_single_slices(tmp_path) -> None:
    dicom_folder(tmp_path / "a", order=(1,), RescaleSlope=0.5, RescaleIntercept=10)
    volume = read_volume(tmp_path / "a", canonical=False)
    np.testing.assert_allclose(volume[0], voxels()[..., 1].T * 0.5 + 10)
    assert volume.attrs["voxel_size_mm"] == pytest.approx([2.5, 2.0, 1.5])


def test_written_volumes_come_back_with_their_place(tmp_path) -> None:
    volume = read_volume(nifti(tmp_path / "a.nii.gz", voxels()))
    write_volume(tmp_path / "b.nii.gz", volume)
    back = read_volume(tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(back, volume)
    np.testing.assert_allclose(back.attrs["affine"], volume.attrs["affine"], atol=1e-6)
    image = xr.DataArray(np.ones((1, 6, 8), np.float32), dims=("slice", "y", "x"), attrs={"voxel_size_mm": [4.0, 2.0, 1.5]})
    write_volume(tmp_path / "c.nii", image)
    assert nibabel.load(tmp_path / "c.nii").shape == (8, 6, 1)
    assert read_volume(tmp_path / "c.nii").attrs["voxel_size_mm"] == [4.0, 2.0, 1.5]
    assert sorted(one.name for one in tmp_path.iterdir()) == ["a.nii.gz", "b.nii.gz", "c.nii"]
    for name, bad, message in [
        ("d.png", image, r"d.png: the name of a NIfTI file ends in .nii"),
        ("d.nii", image[0], r"d.nii: the image has dimensions \('y', 'x'\)"),
    ]:
        with pytest.raises(UserError, match=message):
            write_volume(tmp_path / name, bad)
    assert len(list(tmp_path.iterdir())) == 3


def test_one_of_several_volumes_and_series(tmp_path) -> None:
    path = nifti(tmp_path / "a.nii", np.stack([voxels(0), voxels(1)], -1))
    for chosen in (None, 2):
        with pytest.raises(UserError, match=r"a.nii: 2 volumes in one file.*volume=0 to volume=1"):
            read_volume(path, volume=chosen)
    np.testing.assert_array_equal(read_volume(path, volume=1, canonical=False), voxels(1).T)
    dicom_folder(tmp_path / "s")
    dicom_slice(tmp_path / "s" / "other.dcm", voxels()[..., 0], 0, series="9.9")
    with pytest.raises(UserError, match=r"s: 2 series in one folder; choose series= one of 1.2.3, 9.9"):
        read_volume(tmp_path / "s")
    with pytest.raises(UserError, match=r"s: no series 7; the folder has 1.2.3, 9.9"):
        read_volume(tmp_path / "s", series="7")
    assert read_volume(tmp_path / "s", series="1.2.3").shape == SIZE[::-1]


def test_complex_and_slightly_negative_images(tmp_path) -> None:
    values = voxels().astype(np.complex64) * np.exp(1j)
    np.testing.assert_allclose(read_volume(nifti(tmp_path / "a.nii", values), canonical=False), voxels().T, rtol=1e-6)
    values = voxels().astype(np.float32)
    values[0, 0, 0] = -0.5
    with pytest.raises(UserError, match=r"b.nii: 1 negative voxels, the lowest -0.5; .* clip=True"):
        read_volume(nifti(tmp_path / "b.nii", values))
    assert read_volume(tmp_path / "b.nii", clip=True).values.min() == 0


def bad_volume(case: str, folder):
    path = folder / "a.nii.gz"
    values = voxels().astype(np.float32)
    match case:
        case "missing":
            pass
        case "empty":
            path.touch()
        case "truncated":
            nifti(path, np.random.default_rng(0).normal(size=(30, 30, 30)) ** 2)
            path.write_bytes(path.read_bytes()[:3000])
        case "no NIfTI":
            path = folder / "a.nii"
            path.write_bytes(b"x" * 500)
        case "NaN":
            values[1, 2, 3] = np.nan
            nifti(path, values)
        case "zero":
            nifti(path, values * 0)
        case "affine":
            path = nifti(folder / "a.nii", values)
            image = nibabel.Nifti1Image(values, None)
            image.header.set_sform(np.diag([0.0, 1, 1, 1]), code=1)
            nibabel.save(image, path)
        case "5-D":
            nifti(path, np.stack([np.stack([values, values], -1)] * 2, -1))
        case "suffix":
            path = folder / "a.mgz"
            path.write_bytes(b"x")
        case "no DICOM":
            (folder / "readme.txt").write_text("nothing")
            path = folder
        case "cut DICOM":
            path = dicom_folder(folder / "s")
            whole = (path / "im0.dcm").read_bytes()
            (path / "im0.dcm").write_bytes(whole[: len(whole) - 20])
        case "no pixels":
            path = dicom_folder(folder / "s")
            one = pydicom.dcmread(path / "im0.dcm")
            del one.PixelData
            one.save_as(path / "im0.dcm")
        case "position":
            path = dicom_folder(folder / "s", ImagePositionPatient=None)
        case "damaged value":
            path = dicom_folder(folder / "s", order=(0,))
            whole = (path / "im0.dcm").read_bytes()
            assert b"2.0\\1.5" in whole
            (path / "im0.dcm").write_bytes(whole.replace(b"2.0\\1.5", b"2.0\\1x5"))
        case "gap":
            path = dicom_folder(folder / "s", order=(0, 1, 3))
        case "twice":
            path = dicom_folder(folder / "s", order=(0, 1, 1, 2))
        case "frames":
            path = dicom_folder(folder / "s", NumberOfFrames=3)
        case "tilted":
            path = dicom_folder(folder / "s", order=(0, 1))
            dicom_slice(path / "x.dcm", voxels()[..., 2], 2, ImageOrientationPatient=[1, 0, 0, 0, 1, 0])
        case "rows":
            path = dicom_folder(folder / "s", order=(0, 1))
            dicom_slice(path / "x.dcm", voxels()[:, :3, 2], 2)
        case "compressed":
            path = dicom_folder(folder / "s")
            one = pydicom.dcmread(path / "im0.dcm")
            one.file_meta.TransferSyntaxUID = pydicom.uid.JPEG2000
            one.PixelData = pydicom.encaps.encapsulate([b"\0" * 70])
            one["PixelData"].is_undefined_length = True
            one.save_as(path / "im0.dcm")
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"a.nii.gz: no such file"),
        ("empty", r"a.nii.gz: the file is empty"),
        ("truncated", r"a.nii.gz: cannot be read as NIfTI, the file is damaged or truncated"),
        ("no NIfTI", r"a.nii: cannot be read as NIfTI"),
        ("NaN", r"a.nii.gz: 1 NaN or infinite voxels, the first at \(x, y, z\) = \(1, 2, 3\)"),
        ("zero", r"a.nii.gz: the volume is zero everywhere"),
        ("affine", r"a.nii: its affine has a zero column"),
        ("5-D", r"a.nii.gz: an image of shape \(7, 5, 4, 2, 2\); three axes"),
        ("suffix", r"a.mgz: unknown format '.mgz'"),
        ("no DICOM", r"no DICOM image in this folder"),
        ("cut DICOM", r"s/im0.dcm: (its pixels cannot be decoded|cannot be read as DICOM)"),
        ("no pixels", r"s/im0.dcm: an image without PixelData"),
        ("position", r"s/im0.dcm: ImagePositionPatient missing"),
        ("damaged value", r"s: a DICOM file holds a damaged value"),
        ("gap", r"s: slices are missing: distances run from 3 to 6 mm, the widest after slice 2 of 3"),
        ("twice", r"s: several slices at one position"),
        ("frames", r"s/im0.dcm: a multi-frame file"),
        ("tilted", r"s: the slices are not parallel"),
        ("rows", r"s: slices differ in Rows \(3, 5\)"),
        ("compressed", r"s/im0.dcm: its pixels cannot be decoded"),
    ],
)
def test_volumes_that_cannot_be_read_say_why(case: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read_volume(bad_volume(case, tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.data
@pytest.mark.parametrize(("name", "size"), [("ch2", 181), ("S1_raw", 256), ("otsu", 176)])
def test_the_heads_are_read(name: str, size: int, science_data) -> None:
    volume = read_volume(science_data / "mri" / f"{name}.nii.gz", canonical=False)
    assert volume.sizes["x"] == size and float(volume.min()) >= 0
    assert np.allclose(volume.attrs["voxel_size_mm"], 1.0, atol=1e-3)
