"""ISMRMRD/MRD: HDF5 with one record per readout, which its counters put in its place."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow_mri.data.formats.hdf5 import opened
from sciflow_mri.data.formats.mrd_geometry import place
from sciflow_mri.data.header import Encoding, Header, parse_header
from sciflow_mri.data.recording import Recording

__all__ = ["read_mrd"]

log = logging.getLogger(__name__)

# bits of the field `flags`, counted from 1 in the definition of the format
NOISE, CALIBRATION, CALIBRATION_AND_IMAGING, REVERSE = (1 << (bit - 1) for bit in (19, 20, 21, 22))
# navigators, phase correction, feedback, dummies, body-coil and phase-stabilisation scans are no part of the k-space
NO_IMAGE = sum(1 << (bit - 1) for bit in (23, 24, 26, 27, 28, 29, 30, 31))
REPEATED = ("contrast", "phase", "repetition", "set")


def read_mrd(path: Path, label: str, *, average: int | None = None) -> list[Recording]:
    """One k-space per encoding, number of coils, contrast, phase, repetition and set of a Cartesian, 2-D encoded scan.

    Readouts go where `center_sample` and the encoding limits put them: asymmetric echoes and partial Fourier leave unmeasured
    entries, padding of the readout (`discard_pre`, `discard_post`) is dropped. Equally often averaged lines are averaged.
    Noise acquisitions are scaled to the bandwidth of the data, as the header's relative receiver noise bandwidth says.
    Separate calibration scans are left out, embedded calibration lines belong to the k-space.

    Source: Inati et al., "ISMRM Raw data format: A proposed standard for MRI raw datasets", 2017, doi 10.1002/mrm.26089.
    """
    with opened(path) as file:
        groups = [name for name in file if isinstance(file[name], h5py.Group) and {"data", "xml"} & set(file[name])]
        if len(groups) != 1:
            raise UserError(
                f"{label}: {len(groups)} groups hold acquisitions ({', '.join(map(str, groups)) or 'none'}), one is needed"
            )
        group = file[groups[0]]
        if "xml" not in group:
            raise UserError(
                f"{label}: the ISMRMRD header (dataset '{groups[0]}/xml') is missing; the scan cannot be placed without"
            )
        if "data" not in group or not group["data"].size:
            raise UserError(f"{label}: no acquisitions (dataset '{groups[0]}/data' is missing or empty)")
        header, records = parse_header(group["xml"][0], label), group["data"][()]
    if not {"head", "data"} <= set(records.dtype.names or ()):
        raise UserError(f"{label}: its acquisitions lack 'head' or 'data': no ISMRMRD file, or a damaged one")
    heads, data = records["head"], records["data"]
    flags = heads["flags"].astype(np.uint64)
    noise = (flags & np.uint64(NOISE)) > 0
    image = ~noise & ((flags & np.uint64(NO_IMAGE)) == 0)
    _refuse(header, heads, image, label)
    found = []
    kinds = np.stack(
        [heads["encoding_space_ref"], heads["active_channels"], *(heads["idx"][name] for name in REPEATED)], axis=1
    )
    kinds = kinds.astype(np.int64)
    several = np.unique(kinds[image], axis=0)
    for kind in several:
        members = np.flatnonzero(image & (kinds == kind).all(axis=1))
        differing = [i for i in range(len(kind)) if len(np.unique(several[:, i])) > 1]
        names = ("encoding", "coils", *REPEATED)
        part = ", ".join(f"{names[i]} {kind[i]}" for i in differing)
        one = _fill(
            heads[members],
            data[members],
            header.encodings[kind[0]],
            Recording(np.empty(0, np.complex64), label, part=part),
            average,
        )
        if one is None:
            continue
        averages = one.attrs.get("averages", 1)
        one.noise = _noise(
            heads, data, noise, int(kind[1]), heads[members[0]]["sample_time_us"], header.noise_bandwidth, averages
        )
        one.attrs |= header.facts
        found.append(one)
    if not found:
        raise UserError(f"{label}: none of its {len(heads)} acquisitions belongs to an image")
    return found


def _refuse(header: Header, heads: NDArray, image: NDArray[np.bool_], label: str) -> None:
    if not image.any():
        raise UserError(f"{label}: none of its {len(heads)} acquisitions belongs to an image")
    used = np.unique(heads["encoding_space_ref"][image])
    if used[-1] >= len(header.encodings):
        raise UserError(f"{label}: acquisitions of encoding {used[-1]}, but the header describes {len(header.encodings)}")
    for number in used:
        encoding = header.encodings[number]
        if encoding.trajectory != "cartesian":
            raise UserError(
                f"{label}: its trajectory is {encoding.trajectory}, Cartesian k-space is needed; grid it and save .npz"
            )
        step_2 = int(heads["idx"]["kspace_encode_step_2"][image & (heads["encoding_space_ref"] == number)].max())
        if encoding.encoded[2] > 1 or step_2:
            raise UserError(
                f"{label}: 3-D encoded (matrix {' x '.join(map(str, encoding.encoded))}); slices encoded in 2-D are needed: "
                "transform the fully sampled readout and save its planes as .npz"
            )
    if (heads["flags"][image].astype(np.uint64) & np.uint64(REVERSE)).any():
        raise UserError(f"{label}: readouts in reverse (echo planar) need a ghost correction that is not part of this reader")


def _fill(heads: NDArray, data: NDArray, encoding: Encoding, found: Recording, average: int | None) -> Recording | None:
    """The k-space of one kind of acquisitions; None if they are a separate calibration scan."""
    flags = heads["flags"].astype(np.uint64)
    only_calibration = ((flags & np.uint64(CALIBRATION)) > 0) & ((flags & np.uint64(CALIBRATION_AND_IMAGING)) == 0)
    calibrating = (flags & np.uint64(CALIBRATION | CALIBRATION_AND_IMAGING)) > 0
    if encoding.calibration_mode in ("separate", "external"):
        if only_calibration.all():
            return None
        if only_calibration.any():
            log.info("%s: %d readouts of a separate calibration scan are left out", found.name, int(only_calibration.sum()))
        heads, data, calibrating = heads[~only_calibration], data[~only_calibration], calibrating & False
        only_calibration = only_calibration[~only_calibration]
    numbers, width, lines = np.unique(heads["idx"]["slice"]), encoding.encoded[0], encoding.encoded[1]
    coils = int(heads["active_channels"][0])
    _, _, centre = encoding.limits.get("kspace_encoding_step_1", (0, lines - 1, lines // 2))
    total = np.zeros((len(numbers), coils, lines, width), np.complex64)
    times = np.zeros((len(numbers), lines, width), np.int64)
    # lines of a scan that calibrates only where no image line is
    order = np.argsort(only_calibration, kind="stable")
    stated: set[int] = set()
    for index in order:
        head = heads[index]
        if average is not None and int(head["idx"]["average"]) != average:
            continue
        line = lines // 2 + int(head["idx"]["kspace_encode_step_1"]) - centre
        where, samples = _readout(head, data[index], width, found.name)
        if not 0 <= line < lines:
            raise UserError(
                f"{found.name}: line {int(head['idx']['kspace_encode_step_1'])} with centre {centre} is outside the {lines} "
                "encoded lines; encoding limits and acquisitions contradict each other"
            )
        at = int(np.searchsorted(numbers, head["idx"]["slice"]))
        if calibrating[index]:
            stated.add(line)
        if only_calibration[index] and times[at, line].any():
            continue
        total[at, :, line, where] += samples
        times[at, line, where] += 1
    if not times.any():
        raise UserError(
            f"{found.name}: no acquisition of average {average}; there are 0 to {int(heads['idx']['average'].max())}"
        )
    counts = np.unique(times[times > 0])
    if len(counts) > 1:
        raise UserError(
            f"{found.name}: entries were averaged {counts[0]} to {counts[-1]} times, so that their noise differs; "
            "pass average=0 to read one of the averages"
        )
    if counts[0] > 1:
        total /= counts[0]
        found.attrs["averages"] = int(counts[0])
    found.kspace, found.mask, found.centred = total, times > 0, True
    found.calibration = (min(stated), max(stated) + 1) if stated else None
    x, y, z = encoding.encoded_mm
    found.voxel_size_mm = (z, y / lines, x / width)
    found.readout_keep = round(width * encoding.recon_mm[0] / x)
    found.attrs["acceleration_stated"] = list(encoding.acceleration)
    first = [heads[np.flatnonzero(heads["idx"]["slice"] == number)[0]] for number in numbers]
    place(found, first)
    return found


def _readout(head: NDArray, values: NDArray, width: int, label: str) -> tuple[slice, NDArray[np.complex64]]:
    """Where along kx a readout goes, and its samples (coil, kx)."""
    count, coils = int(head["number_of_samples"]), int(head["active_channels"])
    if values.size != 2 * count * coils:
        raise UserError(f"{label}: an acquisition holds {values.size // 2} samples, its head says {coils} x {count}")
    before, after = int(head["discard_pre"]), int(head["discard_post"])
    centre = int(head["center_sample"])
    if centre == 0:  # left unset by some converters; no Cartesian readout starts at its centre
        centre = before + (count - before - after) // 2
    start = width // 2 - centre + before
    stop = start + count - before - after
    if start < 0 or stop > width or stop <= start:
        raise UserError(
            f"{label}: a readout of {count} samples with centre {centre} does not fit into {width} encoded points of kx; "
            "header and acquisitions contradict each other"
        )
    samples = values.view(np.complex64).reshape(coils, count)
    return slice(start, stop), samples[:, before : count - after]


def _noise(
    heads: NDArray, data: NDArray, noise: NDArray[np.bool_], coils: int, dwell: float, bandwidth: float, averages: int
) -> NDArray[np.complex64] | None:
    """Noise samples (coil, sample) on the scale of the data: their variance goes with the bandwidth of the receiver."""
    parts: list[Any] = []
    for index in np.flatnonzero(noise & (heads["active_channels"] == coils)):
        there = float(heads["sample_time_us"][index])
        factor = np.sqrt(there / dwell / bandwidth / averages) if there > 0 and dwell > 0 else np.sqrt(1 / averages)
        parts.append(data[index].view(np.complex64).reshape(coils, -1) * np.float32(factor))
    return np.concatenate(parts, axis=1) if parts else None
