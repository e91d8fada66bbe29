"""Which arrays a store of many observations has, and what one observation puts into them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray
import zarr

from sciflow.posterior.calls import Calls
from sciflow.posterior.many.drawing import ARRAYS, Drawn
from sciflow.store.tree import data_group, library, versions
from sciflow.strict_json import dumps, loads

__all__ = ["CALLS", "TEXTS", "create", "difference", "shapes_of", "value_of"]

TEXTS = {
    "certificate": "JSON of the observation's certificate",
    "verdict": "of the certificate",
    "statistics": "JSON of the method's figures",
    "method": "with its settings",
    "failure": "why there are no draws; empty if there are",
}
CALLS = tuple(vars(Calls()))
_EVIDENCE = ("log_value", "error", "method", "replicates")

Shapes = dict[str, tuple[tuple[int, ...], str]]


def create(
    path: Path, observations: int, chunk: int, kind: str, first: Drawn, *, request: Mapping[str, Any],
    observed: Mapping[str, Any] | None,
) -> zarr.Group:  # fmt: skip
    """Empty arrays as the draws of one observation have them, (observation, ...), `chunk` observations to a file."""
    shape = first.arrays["x"].shape
    event = ["feature"] if len(shape) == 3 else [f"x_dim_{k}" for k in range(len(shape) - 2)]
    index = {"observation": np.arange(observations), "chain": np.arange(shape[0]), "draw": np.arange(shape[1])}
    names = {event[0]: first.names} if first.names is not None and len(shape) == 3 else {}
    skeleton = {
        "/": xarray.Dataset(attrs={"request": dumps(request, indent=None), "kind": kind, "versions": versions()}),
        kind: xarray.Dataset(coords={**index, **names}, attrs=library()),
        "sample_stats": xarray.Dataset(coords=index, attrs=library()),
    }
    if first.evidence is not None:
        skeleton["evidence"] = xarray.Dataset(coords={"observation": index["observation"]})
    if observed:
        one = {"observation": index["observation"]}
        skeleton["observed_data"] = data_group("observed_data", observed, (observations,), ["observation"], one)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Zarr 3 has no specification of numpy's fixed-width strings yet
        xarray.DataTree.from_dict(skeleton).to_zarr(path, mode="w", zarr_format=3, consolidated=False)
        group = zarr.open_group(path, mode="r+", use_consolidated=False)

        def add(place: str, shape: tuple[int, ...], dtype: Any, dims: list[str], meaning: str) -> None:
            kind = "O" if dtype == "string" else np.dtype(dtype).kind
            group.create_array(
                place, shape=(observations, *shape), chunks=(min(chunk, observations), *(max(size, 1) for size in shape)),
                dtype=dtype, fill_value=np.nan if kind in "fc" else "" if kind == "O" else 0,
                dimension_names=["observation", *dims], attributes={"description": meaning} if meaning else {},
            )  # fmt: skip

        for name, value in first.arrays.items():
            stored, meaning = ARRAYS[name]
            dims = ["chain", "draw", *event] if name == "x" else ["chain", "draw"]
            add(f"{kind if name == 'x' else 'sample_stats'}/{stored}", value.shape, value.dtype, dims, meaning)
        for name, meaning in TEXTS.items():
            add(f"sample_stats/{name}", (), "string", [], meaning)
        for name in CALLS:
            add(f"sample_stats/n_{name}", (), "int64", [], f"{name.replace('_', ' ')} calls")
        add("sample_stats/not_finite", (), "int64", [], "draws with a number that is not finite")
        add("sample_stats/processor_seconds", (), "float64", [], "of its draws: the one figure that differs from run to run")
        if first.evidence is not None:
            add("evidence/log_value", (), "float64", [], "log Z")
            add("evidence/error", (), "float64", [], "standard error of log_value")
            add("evidence/method", (), "string", [], "")
            add("evidence/replicates", (len(first.evidence[3]),), "float64", ["replicate"], "log Z of independent replicates")
    group.attrs["layout"] = dumps(_shapes(first), indent=None)  # last: a store without it is made again
    return group


def shapes_of(group: zarr.Group) -> Shapes:
    """Shapes and types that each observation must have. Raises KeyError if the store was not laid out to its end."""
    return {name: (tuple(shape), dtype) for name, (shape, dtype) in loads(str(group.attrs["layout"])).items()}


def difference(shapes: Shapes, drawn: Drawn) -> str:
    """Why an observation cannot be kept beside the others; '' if it can."""
    own = _shapes(drawn)
    for name in {**shapes, **own}:
        if own.get(name) != shapes.get(name):
            return f"its {name} has {_said(own.get(name))}, that of the first observation {_said(shapes.get(name))}"
    return ""


def value_of(place: str, array: Any, drawn: Drawn) -> Any:
    """What an observation puts into the array at `place`; NaN, 0 or '' if it failed."""
    group, _, name = place.rpartition("/")
    if group == "evidence":
        values: dict[str, Any] = dict(zip(_EVIDENCE, drawn.evidence or (), strict=False))
    else:
        values = {stored: drawn.arrays[key] for key, (stored, _) in ARRAYS.items() if key in drawn.arrays}
        values |= {"not_finite": drawn.bad, "processor_seconds": drawn.seconds, "failure": drawn.failure, **drawn.records}
        values |= {f"n_{key}": count for key, count in drawn.calls.items()}
    return values.get(name, np.full(array.shape[1:], array.fill_value) if array.ndim > 1 else array.fill_value)


def _shapes(drawn: Drawn) -> Shapes:
    found = {name: (tuple(value.shape), str(value.dtype)) for name, value in drawn.arrays.items()}
    if drawn.evidence is not None:
        found["evidence"] = ((len(drawn.evidence[3]),), "float64")
    return found


def _said(entry: tuple[tuple[int, ...], str] | None) -> str:
    return "none" if entry is None else f"shape {entry[0]} ({entry[1]})"
