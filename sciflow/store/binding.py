"""Which draws a certificate speaks about: the sha256 of their arrays, in its context."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np
import xarray

from sciflow.certificate import Certificate
from sciflow.errors import UserError

__all__ = ["HASHES", "array_hashes", "bound", "differing"]

HASHES = "arrays_sha256"  # the entry of the context: array -> sha256
_BLOCK = 2**26  # bytes read at once
_SEVERAL = ("recalibrated", "prior_sbc")  # all arrays of these groups; else x and log_weight


def array_hashes(tree: xarray.DataTree) -> dict[str, str]:
    """Array -> sha256, of draws, their weights, recalibrated intervals and calibration ranks, as far as the tree has them.

    Hashed are the array's name, type and shape, and its bytes: little-endian, in C order, with one and the same NaN (files do
    not keep its sign). Arrays of a Zarr folder are read in blocks.
    """
    found = {f"{group}/x": tree[group]["x"] for group in ("posterior", "estimate") if group in tree.children}
    if "sample_stats" in tree.children and "log_weight" in tree["sample_stats"]:
        found["sample_stats/log_weight"] = tree["sample_stats"]["log_weight"]
    for group in _SEVERAL:
        if group in tree.children:
            found |= {f"{group}/{name}": entry for name, entry in tree[group].data_vars.items()}  # type: ignore[misc]
    return {name: _sha256(name, entry.variable) for name, entry in found.items()}  # type: ignore[union-attr]


def bound(certificate: Certificate, tree: xarray.DataTree) -> Certificate:
    """The certificate with the hashes of the arrays in the tree.

    Raises `UserError` if it has hashes already and they are those of other arrays.
    """
    now = array_hashes(tree)
    if HASHES not in certificate.context:
        return certificate.extended([], **{HASHES: now})
    if names := differing(certificate.context[HASHES], now):
        raise UserError(
            f"the draws are not those of their certificate: {', '.join(names)} differ{'s' if len(names) == 1 else ''} from the "
            "sha256 in it; they were changed, or the certificate belongs to other draws"
        )
    return certificate


def differing(stated: Any, now: dict[str, str]) -> list[str]:
    """Names of arrays whose hash is not the stated one, that are missing, or that are not mentioned."""
    if not isinstance(stated, dict):
        return sorted(now)
    return sorted(name for name in stated.keys() | now.keys() if stated.get(name) != now.get(name))


def _sha256(name: str, variable: xarray.Variable) -> str:
    dtype = variable.dtype.newbyteorder("<")
    found = hashlib.sha256(f"{name} {dtype.str} {tuple(map(int, variable.shape))}\n".encode())
    _update(found, variable, dtype)
    return found.hexdigest()


def _update(found: Any, variable: xarray.Variable, dtype: np.dtype) -> None:
    """Blocks along the first dimension that is longer than 1."""
    if variable.size * dtype.itemsize <= _BLOCK or variable.ndim == 0:
        found.update(_canonical(variable.values, dtype).tobytes())
    elif variable.shape[0] == 1:
        _update(found, variable[0], dtype)
    else:
        step = max(1, int(_BLOCK // (variable.size // variable.shape[0] * dtype.itemsize)))
        for start in range(0, variable.shape[0], step):
            _update(found, variable[start : start + step], dtype)


def _canonical(values: Any, dtype: np.dtype) -> np.ndarray:
    array = np.array(values, dtype=dtype, order="C")  # a copy: NaN is written into it
    parts = array.reshape(-1).view(array.real.dtype) if dtype.kind == "c" else array
    if dtype.kind in "fc":
        parts[np.isnan(parts)] = np.nan
    return array
