"""Every reader gives the same scan; ISMRMRD, which has the most ways to say it, in detail."""

from __future__ import annotations

import h5py
import ismrmrd
import numpy as np
import pytest
from sciflow_mri.data import make_scan, prepare, read
from sciflow_mri.data.formats.bart import write_cfl
from sciflow_mri.data.formats.fastmri import write_fastmri
from sciflow_mri.data.formats.numpy_files import write_npz

from sciflow.errors import UserError

COILS, LINES, WIDTH = 3, 15, 24
CALIBRATION = range(5, 10)


def head_kspace(slices: int = 2, coils: int = COILS, lines: int = LINES, width: int = WIDTH, seed: int = 3) -> np.ndarray:
    """Unitary k-space of a disc with smooth coils, centred on N//2, whole numbers so that integer files lose nothing."""
    rng = np.random.default_rng(seed)
    y, x = np.meshgrid(np.linspace(-1, 1, lines), np.linspace(-1, 1, width), indexing="ij")
    inside = (y**2 + (2 * x) ** 2 < 0.7).astype(float)
    image = np.stack(
        [[inside * np.exp(-((y - np.sin(c)) ** 2) - (x - np.cos(c)) ** 2 + 1j * c) for c in range(coils)]] * slices
    )
    image = image * (1 + np.arange(slices))[:, None, None, None]
    kspace = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image, axes=(2, 3)), norm="ortho"), axes=(2, 3))
    noise = rng.normal(size=kspace.shape) + 1j * rng.normal(size=kspace.shape)
    whole = np.round(1000 * kspace + 20 * noise)
    return (whole + (whole == 0)).astype(np.complex64)


def sampled(kspace: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    mask = np.zeros(kspace.shape[2], bool)
    mask[[0, 2, *CALIBRATION, 11, 14]] = True
    return kspace * mask[:, None], mask


HEADER = """<?xml version="1.0"?><ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD">
<acquisitionSystemInformation><systemVendor>V</systemVendor><systemFieldStrength_T>3.0</systemFieldStrength_T>
<relativeReceiverNoiseBandwidth>{bandwidth}</relativeReceiverNoiseBandwidth></acquisitionSystemInformation>
<experimentalConditions><H1resonanceFrequency_Hz>127000000</H1resonanceFrequency_Hz></experimentalConditions>{encodings}
</ismrmrdHeader>"""
ENCODING = """<encoding><trajectory>{trajectory}</trajectory>
<encodedSpace><matrixSize><x>{width}</x><y>{lines}</y><z>{z}</z></matrixSize>
<fieldOfView_mm><x>{fov_x}</x><y>{fov_y}</y><z>4.0</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>{keep}</x><y>{lines}</y><z>1</z></matrixSize>
<fieldOfView_mm><x>{keep_x}</x><y>{fov_y}</y><z>4.0</z></fieldOfView_mm></reconSpace>
<encodingLimits><kspace_encoding_step_1><minimum>0</minimum><maximum>{last}</maximum><center>{centre}</center>
</kspace_encoding_step_1></encodingLimits>
<parallelImaging><accelerationFactor><kspace_encoding_step_1>2</kspace_encoding_step_1>
<kspace_encoding_step_2>1</kspace_encoding_step_2></accelerationFactor><calibrationMode>{mode}</calibrationMode></parallelImaging>
</encoding>"""


def header(*encodings: dict, bandwidth: float = 1.0) -> str:
    standard = {"width": WIDTH, "lines": LINES, "z": 1, "trajectory": "cartesian", "mode": "embedded"}
    texts = []
    for one in encodings or ({},):
        given = standard | one
        given = {"centre": given["lines"] // 2, "last": given["lines"] - 1, "keep": given["width"] // 2} | given
        given |= {"fov_x": 2.0 * given["width"], "fov_y": 3.0 * given["lines"], "keep_x": 2.0 * given["keep"]}
        texts.append(ENCODING.format(**given))
    return HEADER.format(bandwidth=bandwidth, encodings="".join(texts))


def readout(
    data: np.ndarray, line: int, slice_: int = 0, *flags: int, position: float | None = None, **more
) -> ismrmrd.Acquisition:
    counters = {name: more.pop(name) for name in ("average", "contrast", "repetition", "kspace_encode_step_2") if name in more}
    more = {"center_sample": data.shape[1] // 2, "sample_time_us": 4.0} | more
    one = ismrmrd.Acquisition.from_array(np.ascontiguousarray(data, np.complex64), **more)
    one.idx.kspace_encode_step_1, one.idx.slice = line, slice_
    for name, value in counters.items():
        setattr(one.idx, name, value)
    one.read_dir[:], one.phase_dir[:], one.slice_dir[:] = (1, 0, 0), (0, 1, 0), (0, 0, 1)
    one.position[:] = (10.0, -20.0, 5.0 * slice_ if position is None else position)
    for flag in flags:
        one.setFlag(flag)
    return one


def write_mrd(path, acquisitions, xml: str | None = None):
    with ismrmrd.Dataset(str(path), "dataset", mode="w") as file:
        if xml is not None:
            file.write_xml_header(xml.encode())
        for one in acquisitions:
            file.append_acquisition(one)
    return path


def acquisitions(kspace: np.ndarray, mask: np.ndarray) -> list[ismrmrd.Acquisition]:
    flag = ismrmrd.ACQ_IS_PARALLEL_CALIBRATION_AND_IMAGING
    return [
        readout(kspace[s, :, line], int(line), s, *([flag] if line in CALIBRATION else []))
        for s in range(len(kspace))
        for line in np.flatnonzero(mask)
    ]


def written(kind: str, kspace: np.ndarray, mask: np.ndarray, folder):
    """The scan as a file of one kind, by the format's own library where there is one."""
    path = folder / kind
    if kind == "mrd":
        return write_mrd(
            folder / "a.mrd",
            acquisitions(kspace, mask),
            header({"lines": kspace.shape[2], "width": kspace.shape[3], "keep": 12}),
        )
    if kind == "bart":
        stacked = np.zeros((kspace.shape[3], kspace.shape[2], 1, kspace.shape[1], *[1] * 9, kspace.shape[0]), np.complex64)
        stacked[:, :, 0, :, 0, 0, 0, 0, 0, 0, 0, 0, 0] = kspace.transpose(3, 2, 1, 0)
        write_cfl(path, stacked)
        return path.with_suffix(".cfl")
    if kind.startswith("fastmri"):
        scan = make_scan(kspace, mask=mask, voxel_size_mm=(4.0, 3.0, 2.0), attrs={"readout_keep": WIDTH // 2})
        write_fastmri(folder / "a.h5", scan)
        if kind != "fastmri":
            with h5py.File(folder / "a.h5", "a") as file:
                whole = file["kspace"][()]
                del file["kspace"]
                file["kspace"] = np.stack([whole.real, whole.imag], -1).astype(np.int16)
        return folder / "a.h5"
    if kind == "npz":
        write_npz(folder / "a.npz", make_scan(kspace, mask=mask))
        return folder / "a.npz"
    arrays = {
        "complex64": kspace,
        "complex128": kspace.astype(np.complex128),
        "float64 pairs": np.stack([kspace.real, kspace.imag], -1).astype(np.float64),
        "int32 pairs": np.stack([kspace.real, kspace.imag], -1).astype(np.int32),
        "int16 fields": np.empty(kspace.shape, [("real", "<i2"), ("imag", "<i2")]),
    }
    arrays["int16 fields"]["real"], arrays["int16 fields"]["imag"] = kspace.real, kspace.imag
    np.save(folder / "a.npy", arrays[kind])
    return folder / "a.npy"


KINDS = [
    "mrd",
    "bart",
    "fastmri",
    "fastmri int16",
    "npz",
    "complex64",
    "complex128",
    "float64 pairs",
    "int32 pairs",
    "int16 fields",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(15, 24), (16, 24), (15, 25)])
def test_every_reader_gives_the_same_scan(kind: str, shape: tuple[int, int], tmp_path) -> None:
    kspace, mask = sampled(head_kspace(lines=shape[0], width=shape[1]))
    [scan] = read(written(kind, kspace, mask, tmp_path))
    np.testing.assert_array_equal(scan["kspace"], kspace)
    np.testing.assert_array_equal(scan["mask"], mask)
    assert scan["kspace"].dtype == np.complex64 and scan["kspace"].dims == ("slice", "coil", "ky", "kx")
    assert scan.attrs["calibration"] == [5, 10]
    assert len(scan.attrs["source_sha256"]) == 64 and scan.attrs["source"].startswith(("a.", "bart"))
    known = kind == "mrd" or kind.startswith("fastmri")
    assert scan.attrs["units"] == ("1/mm" if known else "cycles per field of view")
    if known:
        assert scan.attrs["voxel_size_mm"] == pytest.approx([4.0, 3.0, 2.0])
        assert scan.attrs["readout_keep"] == WIDTH // 2
        np.testing.assert_allclose(scan["ky"], (np.arange(shape[0]) - shape[0] // 2) / (shape[0] * 3.0))
        np.testing.assert_allclose(scan["kx"], (np.arange(shape[1]) - shape[1] // 2) / (shape[1] * 2.0))


@pytest.mark.parametrize(("lines", "width"), [(14, 24), (15, 23), (9, 31)])
def test_mrd_of_other_sizes(lines: int, width: int, tmp_path) -> None:
    kspace = head_kspace(lines=lines, width=width)
    all_lines = [readout(kspace[s, :, line], line, s) for s in range(2) for line in range(lines)]
    [scan] = read(write_mrd(tmp_path / "a.h5", all_lines, header({"lines": lines, "width": width})))
    np.testing.assert_array_equal(scan["kspace"], kspace)
    assert scan.attrs["calibration"] == [0, lines] and scan.attrs["field_strength_T"] == 3.0


def test_mrd_geometry_is_that_of_the_heads_in_nifti_axes(tmp_path) -> None:
    kspace = head_kspace()
    all_lines = [readout(kspace[s, :, line], line, 1 - s, position=5.0 * s) for s in range(2) for line in range(LINES)]
    [scan] = read(write_mrd(tmp_path / "a.h5", all_lines, header()))
    # slice 1 of the counter lies first along the normal
    np.testing.assert_array_equal(scan["kspace"], kspace)
    np.testing.assert_allclose(scan["slice"], [0.0, 5.0])
    affine = np.array(scan.attrs["affine"]).reshape(4, 4)
    # voxel N//2 is the position of the head, left and posterior turned into right and anterior
    np.testing.assert_allclose(affine @ [WIDTH // 2, LINES // 2, 1, 1], [-10.0, 20.0, 5.0, 1.0])
    np.testing.assert_allclose(affine[:3, :3], np.diag([-2.0, -3.0, 5.0]))


def test_mrd_asymmetric_echo_and_partial_fourier_leave_holes(tmp_path) -> None:
    kspace = head_kspace(slices=1)
    # 4 of 15 lines before the centre (centre of the limits 3), and readouts that begin 5 points late
    cut = [readout(kspace[0, :, line + 4, 5:], line, center_sample=WIDTH // 2 - 5) for line in range(11)]
    [scan] = read(write_mrd(tmp_path / "a.h5", cut, header({"centre": 3, "last": 10})))
    expected = kspace.copy()
    expected[:, :, :4] = 0
    expected[..., :5] = 0
    np.testing.assert_array_equal(scan["kspace"], expected)
    np.testing.assert_array_equal(scan["mask"], expected[0, 0] != 0)
    assert scan.attrs["calibration"] == [4, 15] and scan.attrs["calibration_kx"] == [5, 24]
    with pytest.raises(UserError, match=r"oversampling cannot be removed.*asymmetric echo"):
        prepare(scan, oversampling=2)
    assert prepare(scan).attrs["oversampling_removed"] == 0


def test_mrd_discarded_samples_are_dropped(tmp_path) -> None:
    kspace = head_kspace(slices=1)
    padded = np.pad(kspace, ((0, 0), (0, 0), (0, 0), (3, 2)), constant_values=7)
    more = {"discard_pre": 3, "discard_post": 2, "center_sample": WIDTH // 2 + 3}
    [scan] = read(write_mrd(tmp_path / "a.h5", [readout(padded[0, :, line], line, **more) for line in range(LINES)], header()))
    np.testing.assert_array_equal(scan["kspace"], kspace)


def test_mrd_noise_is_scaled_to_the_bandwidth_of_the_data(tmp_path) -> None:
    kspace = head_kspace(slices=1)
    noise = np.random.default_rng(0).normal(size=(2, COILS, 40)).astype(np.complex64)
    first = [readout(one, 0, 0, ismrmrd.ACQ_IS_NOISE_MEASUREMENT, sample_time_us=8.0) for one in noise]
    lines = [readout(kspace[0, :, line], line) for line in range(LINES)]
    skipped = [readout(kspace[0, :, 3], 3, 0, ismrmrd.ACQ_IS_NAVIGATION_DATA)]
    [scan] = read(write_mrd(tmp_path / "a.h5", first + skipped + lines, header(bandwidth=0.793)))
    # twice the dwell time is half the bandwidth, so the data's noise has twice the variance
    np.testing.assert_allclose(scan["noise"], np.concatenate(list(noise), 1) * np.sqrt(2 / 0.793), rtol=1e-6)
    np.testing.assert_array_equal(scan["kspace"], kspace)


def test_mrd_averages(tmp_path) -> None:
    kspace = head_kspace(slices=1)
    twice = [
        readout(kspace[0, :, line] * (1 + average), line, average=average) for line in range(LINES) for average in range(2)
    ]
    [scan] = read(write_mrd(tmp_path / "a.h5", twice, header()))
    np.testing.assert_allclose(scan["kspace"], 1.5 * kspace)
    assert scan.attrs["averages"] == 2
    [scan] = read(write_mrd(tmp_path / "b.h5", twice[:-1], header()), average=0)
    np.testing.assert_array_equal(scan["kspace"], kspace)
    with pytest.raises(UserError, match=r"averaged 1 to 2 times.*average=0"):
        read(tmp_path / "b.h5")
    with pytest.raises(UserError, match=r"no acquisition of average 2; there are 0 to 1"):
        read(tmp_path / "b.h5", average=2)


def test_mrd_sizes_coils_and_contrasts_in_one_file_are_a_list_of_scans(tmp_path) -> None:
    large, small = head_kspace(slices=1), head_kspace(slices=1, coils=2, lines=11, width=16)
    mixed = [readout(large[0, :, line], line) for line in range(LINES)]
    mixed += [readout(small[0, :, line], line, 1, encoding_space_ref=1) for line in range(11)]
    mixed += [readout(2 * large[0, :, line], line, contrast=1) for line in range(LINES)]
    scans = read(write_mrd(tmp_path / "a.h5", mixed, header({}, {"lines": 11, "width": 16})))
    assert [dict(one.sizes)["kx"] for one in scans] == [24, 24, 16] and [one.sizes["coil"] for one in scans] == [3, 3, 2]
    np.testing.assert_array_equal(scans[1]["kspace"], 2 * large)
    np.testing.assert_array_equal(scans[2]["kspace"], small)
    assert scans[2].attrs["part"] == "encoding 1, coils 2, contrast 0" and scans[2].attrs["source"] == "a.h5"


def test_mrd_separate_calibration_is_left_out_and_embedded_is_used(tmp_path) -> None:
    kspace, mask = sampled(head_kspace(slices=1))
    lines = [readout(kspace[0, :, line], int(line)) for line in np.flatnonzero(mask) if line != 7]
    only = [readout(3 * kspace[0, :, line], line, 0, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION) for line in (6, 7)]
    [scan] = read(write_mrd(tmp_path / "a.h5", only + lines, header()))
    np.testing.assert_array_equal(scan["mask"], mask)
    # an image line is not overwritten by a calibration line
    np.testing.assert_array_equal(scan["kspace"][0, :, 6], kspace[0, :, 6])
    np.testing.assert_array_equal(scan["kspace"][0, :, 7], 3 * kspace[0, :, 7])
    assert scan.attrs["calibration"] == [6, 8]
    [scan] = read(write_mrd(tmp_path / "b.h5", only + lines, header({"mode": "separate"})))
    assert not scan["mask"][7]
    with pytest.raises(UserError, match=r"b.h5: no calibration lines: no measured lines around the centre, ky = 7 of 15"):
        prepare(scan)


def bad_mrd(case: str, folder):
    kspace, mask = sampled(head_kspace(slices=1))
    lines = acquisitions(kspace, mask)
    path = folder / "a.h5"
    if case == "no header":
        return write_mrd(path, lines)
    if case == "no XML":
        return write_mrd(path, lines, header()[:200])
    if case == "3-D matrix":
        return write_mrd(path, lines, header({"z": 8}))
    if case == "3-D steps":
        return write_mrd(path, [readout(kspace[0, :, 7], 7, kspace_encode_step_2=3)], header())
    if case in ("radial", "epi"):
        return write_mrd(path, lines, header({"trajectory": case}))
    if case == "reverse":
        return write_mrd(path, [readout(kspace[0, :, 7], 7, 0, ismrmrd.ACQ_IS_REVERSE)], header())
    if case == "line outside":
        return write_mrd(path, [*lines, readout(kspace[0, :, 7], 15)], header())
    if case == "readout too long":
        return write_mrd(path, lines, header({"width": 20}))
    if case == "no encoding":
        return write_mrd(path, [readout(kspace[0, :, 7], 7, encoding_space_ref=2)], header())
    if case == "only noise":
        return write_mrd(path, [readout(kspace[0, :, 7], 7, 0, ismrmrd.ACQ_IS_NOISE_MEASUREMENT)], header())
    if case == "no matrix":
        return write_mrd(path, lines, header().replace("<matrixSize>", "<m>").replace("</matrixSize>", "</m>"))
    if case == "calibration flags":
        return write_mrd(path, [*lines, readout(kspace[0, :, 7], 13, 0, ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)], header())
    if case == "NaN":
        return write_mrd(path, [*lines, readout(kspace[0, :, 7] * np.nan, 13)], header())
    assert case == "no acquisitions"
    return write_mrd(path, [], header())


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no header", r"a.h5: the ISMRMRD header \(dataset 'dataset/xml'\) is missing"),
        ("no XML", r"a.h5: its ISMRMRD header is no valid XML"),
        ("3-D matrix", r"a.h5: 3-D encoded \(matrix 24 x 15 x 8\); slices encoded in 2-D are needed"),
        ("3-D steps", r"a.h5: 3-D encoded"),
        ("radial", r"a.h5: its trajectory is radial, Cartesian k-space is needed"),
        ("epi", r"a.h5: its trajectory is epi"),
        ("reverse", r"a.h5: readouts in reverse"),
        ("line outside", r"a.h5: line 15 with centre 7 is outside the 15 encoded lines"),
        ("readout too long", r"a.h5: a readout of 24 samples with centre 12 does not fit into 20 encoded points"),
        ("no encoding", r"a.h5: acquisitions of encoding 2, but the header describes 1"),
        ("only noise", r"a.h5: none of its 1 acquisitions belongs to an image"),
        ("no matrix", r"a.h5: its ISMRMRD header lacks encodedSpace/matrixSize"),
        ("calibration flags", r"a.h5: lines 5 to 13 are stated as calibration lines, but .* only from 5 to 9"),
        ("NaN", r"a.h5: k-space has 72 NaN or infinite values, the first at \(slice, coil, ky, kx\) = \(0, 0, 13, 0\)"),
        ("no acquisitions", r"a.h5: no acquisitions"),
    ],
)
def test_mrd_that_cannot_be_read_says_why(case: str, message: str, tmp_path) -> None:
    with pytest.raises(UserError, match=message) as raised:
        read(bad_mrd(case, tmp_path))
    assert "\n" not in str(raised.value)
