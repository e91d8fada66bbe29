"""The layout of a tree of draws: names, dimensions, coordinates, attributes (what ArviZ expects)."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

import sciflow
from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.store.source import Source
from sciflow.strict_json import dumps

__all__ = ["Layout", "data_group", "layout", "library", "numpy_of", "versions"]


class Layout:
    """Everything of a tree except the draws: `skeleton` plus the arrays to come, name -> (group, dims, shape, attributes)."""

    def __init__(self, skeleton: dict[str, xarray.Dataset], arrays: dict[str, tuple], draws: int) -> None:
        self.skeleton, self.arrays, self.draws = skeleton, arrays, draws

    def tree(self, values: Mapping[str, np.ndarray]) -> xarray.DataTree:
        """The tree with the arrays given in `values`."""
        groups = {name: dataset.copy() for name, dataset in self.skeleton.items()}
        for name, value in values.items():
            group, dims, _, attributes = self.arrays[name]
            groups[group][name] = (dims, value, attributes)
        return xarray.DataTree.from_dict(groups)

    def only(self, names: Iterable[str]) -> Layout:
        """Without the arrays that the draws turn out not to have."""
        wanted = set(names)
        return Layout(self.skeleton, {name: entry for name, entry in self.arrays.items() if name in wanted}, self.draws)


def layout(
    source: Source,
    draws: int,
    start: int,
    *,
    attributes: Mapping[str, Any],
    observed: Any,
    constants: Any,
    names: Sequence[str] | None,
    dims: Sequence[str] | None,
    coords: Mapping[str, Any] | None,
    certificate: Certificate | None,
    no_density: str | None = None,
) -> Layout:
    """Dimensions are (chain, draw, *batch, *event); see `draw` for their names."""
    batch, event = tuple(source.batch_shape), tuple(source.event_shape)
    batch_dims = ["observation"] if len(batch) == 1 else [f"observation_{k}" for k in range(len(batch))]
    event_dims = ["feature"] if len(event) == 1 else [f"x_dim_{k}" for k in range(len(event))]
    if dims is not None:
        dims = [dims] if isinstance(dims, str) else list(dims)
        if len(dims) == len(batch) + len(event):
            batch_dims, event_dims = dims[: len(batch)], dims[len(batch) :]
        elif len(dims) == len(event):
            event_dims = dims
        else:
            raise UserError(f"dims has {len(dims)} names, the draws have batch shape {batch} and event shape {event}")
    full = ["chain", "draw", *batch_dims, *event_dims]
    if len(set(full)) != len(full):
        raise UserError(f"dims: the names {full} are not unique")
    coordinates = dict(coords or {})
    if names is not None:
        if not event:
            raise UserError("names: the event is a scalar, it has no features to name")
        coordinates.setdefault(event_dims[-1], list(names))
    sizes = dict(zip(full, (1, draws, *batch, *event), strict=True))
    for name, values in coordinates.items():
        if name not in full[2:]:
            raise UserError(f"coords: {name!r} is not a dimension of the draws; they have {full[2:]}")
        if np.shape(values) != (sizes[name],):
            raise UserError(f"coords: {name!r} has shape {np.shape(values)}, the dimension has length {sizes[name]}")
    index = {"chain": [0], "draw": np.arange(start, start + draws)}
    batch_coordinates = {name: values for name, values in coordinates.items() if name in batch_dims}
    skeleton = {
        "/": xarray.Dataset(attrs={**attributes, **({"certificate": certificate.to_json()} if certificate else {})}),
        "posterior": xarray.Dataset(coords={**index, **coordinates}, attrs=library()),
        "sample_stats": xarray.Dataset(coords={**index, **batch_coordinates}, attrs=library()),
    }
    if no_density is not None:
        skeleton["sample_stats"].attrs["no_log_prob"] = no_density
    for group, entries in (("observed_data", observed), ("constant_data", constants)):
        if entries is not None:
            skeleton[group] = data_group(group, entries, batch, batch_dims, batch_coordinates)
    meaning = "log p(x | condition) of the draw"
    if source.quantise is not None:
        meaning += ", that of the dequantised variable: x itself has point masses and was quantised after drawing"
    statistics = {
        "log_prob": meaning,
        "log_prob_standard_error": "of log_prob, whose divergence is estimated by random probes: account for it in weights",
        "n_velocity_evaluations": "evaluations of the velocity network for the draw",
    }
    arrays: dict[str, tuple] = {"x": ("posterior", full, tuple(sizes.values()), {})}
    for name, description in statistics.items():
        arrays[name] = ("sample_stats", full[: 2 + len(batch)], (1, draws, *batch), {"description": description})
    return Layout(skeleton, arrays, draws)


def versions() -> str:
    """The versions of what made the draws, as JSON."""
    found = {"python": platform.python_version(), "sciflow": sciflow.__version__}
    for package in ("torch", "zuko", "numpy", "xarray", "zarr"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return dumps(found, indent=None)


def numpy_of(values: Any) -> np.ndarray:
    """A numpy array; types that numpy or the files lack (bfloat16, float16) become float32."""
    if isinstance(values, Tensor):
        values = values.detach().resolve_conj().resolve_neg()
        values = values.to("cpu", torch.float32 if values.dtype in (torch.bfloat16, torch.float16) else values.dtype)
        return values.numpy()
    values = np.asarray(values)
    return values.astype(np.float32) if values.dtype == np.float16 else values


def library() -> dict[str, str]:
    """Attributes by which ArviZ names what made a group."""
    return {"inference_library": "sciflow", "inference_library_version": sciflow.__version__}


def data_group(group: str, entries: Any, batch: tuple[int, ...], batch_dims: list[str], coordinates: dict) -> xarray.Dataset:
    """Arrays that start with the batch shape share its dimensions; the others are called <name>_dim_0, ..."""
    if isinstance(entries, xarray.Dataset):
        return entries
    if not isinstance(entries, Mapping):
        raise UserError(f"{group} is a {type(entries).__name__}, expected a mapping from names to arrays, or a Dataset")
    variables: dict[str, Any] = {}
    used: set[str] = set()
    for name, values in entries.items():
        if not isinstance(values, (xarray.DataArray, xarray.Variable)):
            array = numpy_of(values)
            if array.dtype == object:
                raise UserError(f"{group}: {name!r} is not an array of numbers or strings")
            lead = batch_dims if batch and array.shape[: len(batch)] == batch else []
            used.update(lead)
            values = ([*lead, *(f"{name}_dim_{k}" for k in range(array.ndim - len(lead)))], array)
        variables[str(name)] = values
    return xarray.Dataset(variables, coords={name: entry for name, entry in coordinates.items() if name in used})
