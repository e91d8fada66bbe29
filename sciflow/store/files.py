"""Draws in files: Zarr and netCDF, complex values, certificates."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import xarray
import zarr

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.store.binding import bound

__all__ = ["GROUPS", "attach_certificate", "certificate_of", "read_draws", "to_netcdf"]

GROUPS = ("posterior", "estimate")  # draws, and draws that no limit makes the posterior's
_PAIR = "real_imag"
_MARK = "complex_dtype"


def to_netcdf(tree: xarray.DataTree, path: str | Path) -> Path:
    """Write a tree of draws as netCDF-4 through h5netcdf, whole or not at all; complex values get a trailing dimension.

    netCDF has no complex numbers: such a variable becomes real with a last dimension `real_imag` (coordinates "real",
    "imag") and the attribute `complex_dtype`, which `read_draws` undoes. Tree and file are built in memory: HDF5 crashes the
    process if the disk is full while it writes.

    The certificate, if there is one, gets the sha256 of the arrays. Raises `UserError` if it belongs to other draws, or if the
    file cannot be written.
    """
    path = Path(path)
    tree = certified(tree)
    try:
        with replacing(path) as beside:
            beside.write_bytes(tree.map_over_datasets(_split).to_netcdf(None, engine="h5netcdf"))
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {reason(error)}") from error
    return path


def read_draws(path: str | Path) -> xarray.DataTree:
    """The tree in a Zarr folder (read on demand) or in a netCDF file (read at once), with complex values restored.

    Draws are in the group `posterior`, or in `estimate` if their method does not reach the posterior in any limit.

    Raises `UserError`, naming the path, if it is missing, unfinished or something else.
    """
    path = Path(path)
    if path.is_dir() and not (path / "zarr.json").exists():
        raise UserError(f"{path}: not a Zarr (version 3) store: it has no zarr.json")
    if not path.exists():
        hint = f"; {path.name}.partial is unfinished: continue it with resume=True" if _partial(path).exists() else ""
        raise UserError(f"{path}: no such file{hint}")
    try:
        if path.is_dir():
            tree = xarray.open_datatree(path, engine="zarr", consolidated=None if _consolidated(path) else False)
        else:
            with xarray.open_datatree(path, engine="h5netcdf", phony_dims="sort") as opened:
                tree = opened.load().map_over_datasets(_join)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{path}: not readable as draws: {' '.join(str(error).split())[:200]}") from error
    if not any(group in tree.children for group in GROUPS):
        raise UserError(f"{path}: no group 'posterior' (nor 'estimate') in it; it has {sorted(tree.children) or 'none'}")
    return tree


def certificate_of(tree: xarray.DataTree) -> Certificate | None:
    """The certificate stored with draws, None if there is none."""
    text = tree.attrs.get("certificate")
    return None if text is None else Certificate.from_json(text)


def attach_certificate(path: str | Path, certificate: Certificate) -> None:
    """Store a certificate with the draws in a Zarr folder; the draws are not rewritten.

    Raises `UserError` if `path` holds no draws, or holds them in a netCDF file, or if the certificate belongs to other draws.
    """
    read_draws(path)
    if not Path(path).is_dir():
        raise UserError(f"{path}: a certificate is attached to a Zarr folder; attach it there, then use to_netcdf again")
    record_certificate(Path(path), certificate)
    consolidate(Path(path))


def record_certificate(folder: Path, certificate: Certificate) -> None:
    """Write a certificate, with the sha256 of the draws, into a Zarr folder; consolidate afterwards."""
    with_hashes = bound(certificate, read_draws(folder))
    zarr.open_group(folder, mode="r+", use_consolidated=False).attrs["certificate"] = with_hashes.to_json()


def certified(tree: xarray.DataTree) -> xarray.DataTree:
    """The tree with the sha256 of its arrays in its certificate; the tree itself if it has none."""
    certificate = certificate_of(tree)
    if certificate is None:
        return tree
    tree = tree.copy(deep=False)
    tree.attrs = {**tree.attrs, "certificate": bound(certificate, tree).to_json()}
    return tree


def consolidate(path: Path) -> None:
    """One metadata file for the whole store, so that opening it takes one read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # consolidation is not in the Zarr 3 specification yet; readers may ignore it
        zarr.consolidate_metadata(path)


def _partial(path: Path) -> Path:
    return path.with_name(f"{path.name}.partial")


def _consolidated(path: Path) -> bool:
    return '"consolidated_metadata"' in (path / "zarr.json").read_text(encoding="utf-8")


def _split(dataset: xarray.Dataset) -> xarray.Dataset:
    for name in [name for name, variable in dataset.variables.items() if variable.dtype.kind == "c"]:
        variable = dataset[name].variable
        values = np.stack([variable.values.real, variable.values.imag], axis=-1)
        attributes = {**variable.attrs, _MARK: str(variable.dtype)}
        split = xarray.Variable((*variable.dims, _PAIR), values, attributes)
        dataset = dataset.assign_coords({_PAIR: ["real", "imag"]}).assign({name: split})
    return dataset


def _join(dataset: xarray.Dataset) -> xarray.Dataset:
    for name in [name for name, variable in dataset.variables.items() if _MARK in variable.attrs]:
        variable = dataset[name].transpose(..., _PAIR).variable
        attributes = {key: value for key, value in variable.attrs.items() if key != _MARK}
        pairs = np.ascontiguousarray(variable.values)
        joined = pairs.view(variable.attrs[_MARK])[..., 0]
        dataset = dataset.assign({name: xarray.Variable(variable.dims[:-1], joined, attributes)})
    return dataset.drop_vars(_PAIR) if _PAIR in dataset.coords and _PAIR not in _used(dataset) else dataset


def _used(dataset: xarray.Dataset) -> set:
    return {dim for name, variable in dataset.variables.items() if name != _PAIR for dim in variable.dims}
