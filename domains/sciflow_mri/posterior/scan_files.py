"""Prepared scans in files: netCDF, with complex values as real and imaginary part, read back as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciflow.errors import UserError
from sciflow.store import to_netcdf
from sciflow_mri.data.scan import check

__all__ = ["is_scan_file", "read_dataset", "read_scan", "write_scan"]

_KIND, _VERSION = "sciflow.mri.scan", 1
_PAIR, _MARK = "real_imag", "complex_dtype"  # as in files of draws


def write_scan(scan: xr.Dataset, path: str | Path) -> Path:
    """Write a checked scan as netCDF, whole or not at all.

    Raises `UserError` for another ending than .nc, for what `check` refuses, and if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".nc":
        raise UserError(f"{path}: a prepared scan is written as netCDF: give a name that ends in .nc")
    marked = check(scan).assign_attrs(kind=_KIND, kind_version=_VERSION)
    return to_netcdf(xr.DataTree(marked), path)


def is_scan_file(path: str | Path) -> bool:
    """Whether a file is one to be read by `read_scan`, by its ending."""
    return Path(path).suffix == ".nc"


def read_scan(path: str | Path) -> xr.Dataset:
    """The scan that `write_scan` wrote. Raises `UserError`, naming the file, if it is missing, damaged or something else."""
    raw = read_dataset(path, "a prepared scan")
    if raw.attrs.get("kind") != _KIND:
        raise UserError(f"{path}: no prepared scan: `sciflow mri prepare` writes one (posterior.nc holds results, not a scan)")
    if int(raw.attrs["kind_version"]) > _VERSION:
        raise UserError(f"{path}: its format version is {raw.attrs['kind_version']}, this sciflow reads {_VERSION}: update it")
    raw.attrs = {name: _plain(value) for name, value in raw.attrs.items() if name not in ("kind", "kind_version")}
    return check(raw)


def read_dataset(path: str | Path, what: str) -> xr.Dataset:
    """A netCDF file without groups, with complex values restored. Raises `UserError`, naming the file, if it cannot be read."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: is a folder, not {what}" if path.is_dir() else f"{path}: no such file")
    try:
        with xr.open_dataset(path, engine="h5netcdf", phony_dims="sort") as opened:
            raw = opened.load()
    except Exception as error:  # h5py raises whatever a damaged file makes of itself
        text = " ".join(str(error).split())[:160]
        raise UserError(f"{path}: cannot be read as {what}, it is damaged or truncated ({text})") from None
    found = raw.assign({str(name): _joined(entry) for name, entry in raw.data_vars.items() if _MARK in entry.attrs})
    return found.drop_vars(_PAIR, errors="ignore")


def _joined(entry: xr.DataArray) -> xr.Variable:
    variable = entry.transpose(..., _PAIR).variable
    values = np.ascontiguousarray(variable.values).view(variable.attrs[_MARK])[..., 0]
    return xr.Variable(variable.dims[:-1], values, {key: value for key, value in variable.attrs.items() if key != _MARK})


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value
