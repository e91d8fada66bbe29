"""Files of scans and volumes to `xarray` with coordinates and units, checked where they enter."""

from sciflow_mri.data.formats.numpy_files import write_npz
from sciflow_mri.data.noise import noise_covariance
from sciflow_mri.data.preparing import prepare
from sciflow_mri.data.reading import read
from sciflow_mri.data.scan import affine_of, check, make_scan, voxel_size_of

__all__ = [
    "affine_of",
    "check",
    "make_scan",
    "noise_covariance",
    "prepare",
    "read",
    "read_volume",
    "voxel_size_of",
    "write_npz",
    "write_volume",
]


def __getattr__(name: str) -> object:
    # nibabel is needed for volumes only
    if name in ("read_volume", "write_volume"):
        from sciflow_mri.data import volumes

        return getattr(volumes, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
