"""Write the embedded scan of the MRI domain: `python data/make_mri_demo.py [folder]`.

One axial slice of the head `ch2` (Colin27: 27 scans of one person, as MRIcron ships it, BSD-3-Clause), as a scanner would
measure it: smooth phase, bias field, 8 coils that are not known to the reconstruction, white noise, on the full grid of 1 mm;
k-space is then cut to 64 x 64. `demo_full.h5` has all lines, `demo_scan.h5` every fourth of them, 8 in the centre, both in
fastMRI's layout. The head is looked for as the data set `head_ch2` of `sciflow data`, then as $SCIFLOW_DATA/mri/ch2.nii.gz. The
same versions of numpy and HDF5 give the same bytes.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import h5py
import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "domains"))

from sciflow_mri.data import make_scan, prepare, read_volume
from sciflow_mri.data.formats.fastmri import write_fastmri
from sciflow_mri.model.appearance import bias_field, smooth_phase
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.physics.fourier import to_kspace
from sciflow_mri.physics.masks import line_mask

from sciflow import datasets
from sciflow.errors import UserError
from sciflow.files import replacing

SIZE, COILS, ACCELERATION, CALIBRATION = 64, 8, 4, 8
FIELD, HEIGHT = 224, 95  # voxels of 1 mm: the side of the field of view, the slice counted from below
NOISE, SEED = 0.01, 27  # of the largest magnitude, per real and imaginary part of the uncut k-space


def head_file() -> Path:
    """The NIfTI file of the head."""
    if "head_ch2" in datasets.entries():
        return datasets.path("head_ch2")
    path = Path(os.environ.get("SCIFLOW_DATA", "")) / "mri" / "ch2.nii.gz"
    if not path.is_file():
        raise UserError(f"{path} does not exist: set SCIFLOW_DATA to the folder that has mri/ch2.nii.gz")
    return path


def full_scan() -> object:
    """All lines of the slice, 64 x 64, with voxels of 3.5 mm and 5 mm between slices."""
    volume = read_volume(head_file())
    plane = np.zeros((FIELD, FIELD), np.float32)
    slice_ = volume.values[HEIGHT][::-1]  # forehead up
    top, left = ((FIELD - side) // 2 for side in slice_.shape)
    plane[top : top + slice_.shape[0], left : left + slice_.shape[1]] = slice_ / np.percentile(slice_[slice_ > 0], 99.5)
    rng = np.random.default_rng(SEED)
    image = plane * bias_field(FIELD, rng, 0.15) * smooth_phase(FIELD, rng)
    maps = coil_maps(COILS, FIELD, rng)
    kspace = to_kspace(torch.from_numpy((maps * image).astype(np.complex64))).numpy()
    noise = rng.normal(size=(2, *kspace.shape)).astype(np.float32) * np.float32(NOISE * np.abs(image).max())
    whole = make_scan(
        (kspace + noise[0] + 1j * noise[1])[None].astype(np.complex64), mask=np.ones(FIELD, bool), voxel_size_mm=(5.0, 1.0, 1.0)
    )
    return prepare(whole, size=SIZE)


def write(path: Path, scan: object) -> None:
    """fastMRI's layout, compressed: zeros take no room."""
    plain = path.with_name(f"{path.name}.plain-{os.getpid()}")
    try:
        write_fastmri(plain, scan)  # type: ignore[arg-type]
        with replacing(path) as beside, h5py.File(plain, "r") as source, h5py.File(beside, "w") as target:
            for name in sorted(source):
                values = source[name][()]
                packed = {} if np.ndim(values) == 0 else {"compression": "gzip", "compression_opts": 9, "shuffle": True}
                target.create_dataset(name, data=values, track_times=False, **packed)
    finally:
        plain.unlink(missing_ok=True)


def main() -> None:
    """Write both files, each whole or not at all."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    default = Path(__file__).resolve().parents[1] / "domains" / "sciflow_mri" / "samples"
    parser.add_argument("folder", nargs="?", type=Path, default=default)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    full = full_scan()
    mask = line_mask(SIZE, ACCELERATION, CALIBRATION, seed=SEED).numpy()
    write(folder / "demo_full.h5", full)
    write(folder / "demo_scan.h5", prepare(full, undersample=mask))  # type: ignore[arg-type]


if __name__ == "__main__":
    main()
