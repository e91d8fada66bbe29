"""One reconstructed slice as a tree: draws, images, what was measured and estimated, hashes and the certificate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr

from sciflow.persistence import fingerprint
from sciflow.posterior.result import Result
from sciflow.posterior.writing import to_tree
from sciflow.store.tree import numpy_of
from sciflow_mri.posterior.acquisition import Acquisition
from sciflow_mri.posterior.drawing import FLAG, flagged
from sciflow_mri.posterior.images import DIMS, coordinates, image_group

__all__ = ["WARNING", "data_hashes", "result_tree", "zero_filled"]

WARNING = "out of distribution: the prior has not seen scans like this one"
LOG_PROB = (
    "exact log-density of the drawn lines under the flow, before the consistency step, with the flow's added noise, in units "
    "of the image it was given"
)
_KEPT = ("source", "format", "retrospective", "prewhitened", "recentred_from")


def result_tree(
    posterior: Result, acquisition: Acquisition, scan: xr.Dataset, slice: int, *, prior: Any = None,
    hashes: Mapping[str, str] | None = None,
) -> xr.DataTree:  # fmt: skip
    """The tree of complex draws from `draw_images`, as `sciflow.posterior.writing.to_tree` lays it out, and besides:

    - `posterior`: x (chain = 1, draw, image_y, image_x), complex, in units of the scan;
    - `sample_stats`: residual (chain, draw), |y - A x|^2 / sigma^2 per real datum; of a null-space flow also log_prob;
    - `images`: mean, std, interval, zero_filled, see `image_group`;
    - `observed_data`: the k-space (coil, ky, kx) of the slice and its mask;
    - `constant_data`: maps (coil, image_y, image_x), the eigenvalue of those of calibration lines, sigma (coil) and variance
      (coil, ky) of the noise.

    Attributes: `maps` ("joint": refined with the image; "calibration": of those lines; "given"), `acceleration`, `sigma` (root
    mean square over coils, of real and imaginary part each), `scale`, `slice`, source and history of the scan, hashes (scan and
    prior), seed, versions, certificate, `out_of_distribution` (0, 1, or -1 if nobody looked).
    """
    known = data_hashes(scan, prior) | dict(hashes or {})
    residual = posterior.traces.get("residual")
    places = coordinates(scan)
    tree = to_tree(
        replace(posterior, traces={}), dims=DIMS, coords={name: entry[1] for name, entry in places.items()}, hashes=known,
        observed={"kspace": _variable(("coil", "ky", "kx"), acquisition.kspace),
                  "mask": _variable(("ky", "kx")[: acquisition.mask.dim()], acquisition.mask)},
        constants={"maps": _variable(("coil", *DIMS), acquisition.maps), "eigenvalue": _variable(DIMS, acquisition.eigenvalue),
                   "sigma": _variable(("coil",), acquisition.sigma),
                   "variance": _variable(("coil", "ky", "kx")[: acquisition.variance.dim()], acquisition.variance)},
    )  # fmt: skip
    x: Any = tree["posterior"]["x"]
    x.attrs |= {"units": "units of the scan"}
    for name, entry in places.items():
        tree["posterior"].coords[name].attrs |= entry[2]
    if residual is not None:
        text = "|y - A x|^2 / sigma^2 per real datum: 1 is expected"
        values = numpy_of(residual).reshape(1, -1)
        tree["sample_stats"]["residual"] = xr.DataArray(values, dims=("chain", "draw"), attrs={"description": text})
    if "log_prob" in tree["sample_stats"]:
        tree["sample_stats"]["log_prob"].attrs["description"] = LOG_PROB
    images = image_group(x.values[0], zero_filled(acquisition), scan, slice)
    tree["images"] = xr.DataTree(images)
    figures = posterior.statistics
    tree.attrs |= {
        "acceleration": float(figures["acceleration"]), "sigma": float(figures["sigma"]), "scale": float(figures["scale"]),
        "slice": images.attrs["slice"], "label": acquisition.label,
        "maps": acquisition.origin,
        "out_of_distribution": int(flagged(figures)) if FLAG in figures else -1,
        **{name: scan.attrs[name] for name in _KEPT if name in scan.attrs},
    }  # fmt: skip
    if flagged(figures):
        tree.attrs["warning"] = WARNING
    return tree


def zero_filled(acquisition: Acquisition) -> np.ndarray:
    """The image of the measured entries (y, x), complex, in units of the scan, combined by the maps of calibration lines."""
    pair = numpy_of((acquisition.calibrated or acquisition).zero_filled)
    image: np.ndarray = acquisition.scale * (pair[0] + 1j * pair[1])
    return image


def data_hashes(scan: xr.Dataset, prior: Any = None) -> dict[str, str]:
    """sha256 of the file the scan came from and of the weights of the prior, as far as they are known."""
    found = {"scan": str(scan.attrs["source_sha256"])} if "source_sha256" in scan.attrs else {}
    return found | ({} if prior is None else {"prior": fingerprint(prior)})


def _variable(dims: tuple[str, ...], values: Any) -> xr.Variable:
    return xr.Variable(dims, numpy_of(values))
