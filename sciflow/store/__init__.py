"""Draws: from a distribution to `xarray.DataTree`, Zarr and netCDF, each value addressed by (seed, stream, draw)."""

from sciflow.store.drawing import draw
from sciflow.store.files import attach_certificate, certificate_of, read_draws, to_netcdf

__all__ = ["attach_certificate", "certificate_of", "draw", "read_draws", "to_netcdf"]
