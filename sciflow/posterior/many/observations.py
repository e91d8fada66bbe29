"""Observations from a file: NumPy, netCDF or a Zarr folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
import xarray
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["read_observations"]


def read_observations(path: str | Path, variable: str | None = None) -> Tensor | dict[str, Tensor]:
    """One observation per row: a tensor (N, ...), or {"observations": (N, M, ...), "mask": (N, M)} where values are missing.

    Arguments:
        path: of a `.npy` array; of an `.npz` archive, a netCDF file or a Zarr folder with an array `observations` and, if
            values are missing, a boolean array `mask` (True: present) of the shape of the leading axes.
        variable: the name of the array if it is not `observations`; a file with one array needs no name.

    Complex values and strings are refused. Raises `UserError` naming the file and what is wrong with it.

    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.save(f"{folder}/y.npy", np.zeros((3, 2), dtype=np.float32))
    ...     read_observations(f"{folder}/y.npy").shape
    torch.Size([3, 2])
    """
    path = Path(path)
    if not path.exists():
        raise UserError(f"{path}: there is no such file")
    arrays = _arrays(path)
    named = {name: value for name, value in arrays.items() if name != "mask"}
    if variable is None:
        variable = "observations" if "observations" in named or len(named) != 1 else next(iter(named))
    if variable not in named:
        raise UserError(f"{path}: there is no array {variable!r}; there are {', '.join(sorted(named)) or 'none'}")
    y = _tensor(path, variable, named[variable])
    if "mask" not in arrays:
        return y
    mask = arrays["mask"]
    if mask.dtype != np.bool_ or mask.shape != tuple(y.shape)[: mask.ndim]:
        raise UserError(
            f"{path}: the mask is {mask.dtype} of shape {mask.shape}, expected bool, leading axes of {tuple(y.shape)}"
        )
    return {"observations": y, "mask": torch.from_numpy(mask.copy())}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    try:
        if path.suffix == ".npy":
            return {"observations": np.load(path, allow_pickle=False)}
        if path.suffix == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                return {name: archive[name] for name in archive.files}
        opened: Any = xarray.open_zarr(path) if path.is_dir() else xarray.open_dataset(path)
        with opened:
            return {str(name): np.asarray(value.values) for name, value in opened.data_vars.items()}
    except (ValueError, OSError, EOFError, KeyError, BadZipFile) as error:
        raise UserError(f"{path}: not a NumPy array or archive, a netCDF file or a Zarr folder ({error})") from error


def _tensor(path: Path, name: str, array: np.ndarray) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise UserError(f"{path}: {name} has values of type {array.dtype}, expected real numbers")
    if array.ndim == 0 or not len(array):
        raise UserError(f"{path}: {name} has shape {array.shape}, expected one row per observation and one at least")
    wide = array.astype(np.float64 if array.dtype == np.float64 else np.float32)
    return torch.from_numpy(wide)
