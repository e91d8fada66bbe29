"""A simulation and its data with known conditional quantile functions, to test corrections against the truth."""

from __future__ import annotations

from typing import Literal

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import special

from sciflow_physics.data.identity import row_identity
from sciflow_physics.data.roles import Roles

__all__ = ["FEATURES", "ROLES", "draw", "quantile", "roles", "zero_probability"]

Kind = Literal["sim", "data", "fake"]
FEATURES = ("isolation", "leakage", "width", "shape")

ROLES = """
# An electron-like object with known truth: two analytic generators of this project.
[weight]
column = "weight"

[category]
column = "region"
values = ["EB", "EE"]

[event]
id = ["number"]

[features.isolation]
unit = "GeV"
transform = "log"
point_mass = 0.0

[features.leakage]
transform = "log"

[features.width]

[features.shape]

[conditions.pt]
unit = "GeV"
transform = "log"

[conditions.eta]

[auxiliary.mass]
unit = "GeV"
"""


def roles() -> Roles:
    """The roles of the pair's columns."""
    return Roles.from_text(ROLES, source="known truth")


def zero_probability(kind: Kind, pt: NDArray, eta: NDArray) -> NDArray:
    """P(isolation = 0 | pt, eta): larger at low pt and in the barrel."""
    base = {"sim": 0.3, "data": -0.25, "fake": -1.2}[kind]
    return special.expit(base - 0.5 * np.log(np.asarray(pt) / 35) + 0.3 * (np.abs(eta) < 1.5))


def quantile(kind: Kind, feature: str, level: NDArray | float, pt: NDArray | float, eta: NDArray | float) -> NDArray:
    r"""The conditional quantile functions Q(level | pt, eta), monotone in `level`.

    - isolation [GeV]: 0 up to P(0), above it an exponential of mean m(pt, eta);
    - leakage: log-logistic, a (u / (1 - u))^(1/k) with k = 3: a power-law tail without third moment;
    - width, shape: sinh-arcsinh of a normal, correlated with each other in `draw`.
    """
    u, pt, eta = np.asarray(level, float), np.asarray(pt, float), np.asarray(eta, float)
    logpt, endcap = np.log(pt / 35), np.abs(eta) >= 1.5
    normal = special.ndtri(u)
    if feature == "isolation":
        zero = zero_probability(kind, pt, eta)
        mean = {"sim": 1.2, "data": 1.6, "fake": 4.0}[kind] * np.exp(0.25 * logpt) * np.where(endcap, 1.2, 1.0)
        rest = np.clip((u - zero) / (1 - zero), 0.0, None)
        return np.where(u <= zero, 0.0, -mean * np.log1p(-rest))
    if feature == "leakage":
        scale = {"sim": 0.020, "data": 0.025, "fake": 0.045}[kind] * np.exp(-0.2 * logpt + 0.1 * np.abs(eta))
        return scale * np.exp((np.log(u) - np.log1p(-u)) / 3)
    if feature == "width":
        shift, size, skew = {"sim": (0.0, 1.0, 0.0), "data": (0.35, 1.15, 0.15), "fake": (1.2, 1.3, 0.3)}[kind]
        return shift + 0.8 * endcap + 0.2 * logpt + size * np.sinh(np.arcsinh(normal) + skew)
    if feature == "shape":
        shift, size, skew = {"sim": (0.0, 0.9, -0.1), "data": (-0.3, 1.0, -0.2), "fake": (-1.0, 1.2, -0.3)}[kind]
        return shift + 0.3 * np.abs(eta) / 2.5 + size * np.sinh(np.arcsinh(normal) + skew)
    raise ValueError(f"feature {feature!r} is not one of {', '.join(FEATURES)}")


def draw(
    kind: Literal["sim", "data"],
    rows: int,
    seed: int,
    *,
    negative: float = 0.0,
    pt: float | None = None,
    eta: float | None = None,
) -> xr.Dataset:
    """Rows of the simulation or of the data, one per event.

    Arguments:
        negative: fraction of rows with weight -1. They are fakes, and as many fakes of weight +1 hide among the
            others (like same-sign pairs subtracted from opposite-sign ones), so that the signed sum is the pure sample
            and the sum of absolute weights is not.
        pt, eta: fixed conditions instead of the spectrum.
    """
    rng = np.random.default_rng([{"sim": 1, "data": 2}[kind], seed])
    slope = {"sim": 20.0, "data": 16.0}[kind]
    pts = 20 + slope * rng.standard_exponential(rows)
    etas = 2.5 * (2 * rng.uniform(size=rows) - 1)
    if kind == "data":
        etas *= rng.uniform(size=rows) ** 0.1
    pts = np.minimum(pts, 150.0) if pt is None else np.full(rows, pt)
    etas = etas if eta is None else np.full(rows, eta)
    kinds = np.full(rows, kind, dtype="<U4")
    weight = np.ones(rows)
    if negative:
        part = rng.uniform(size=rows)
        kinds[part < 2 * negative] = "fake"
        weight[part < negative] = -1.0
    z = rng.standard_normal((rows, 4))
    correlation = {"sim": 0.3, "data": 0.6}[kind]
    z[:, 3] = correlation * z[:, 2] + np.sqrt(1 - correlation**2) * z[:, 3]
    z[:, 1] = 0.4 * z[:, 0] + np.sqrt(1 - 0.4**2) * z[:, 1]
    level = special.ndtr(z)
    columns = {}
    for j, name in enumerate(FEATURES):
        values = np.empty(rows)
        for source in np.unique(kinds):
            chosen = kinds == source
            values[chosen] = quantile(source, name, level[chosen, j], pts[chosen], etas[chosen])
        columns[name] = values
    columns.update(pt=pts, eta=etas, mass=91.2 + 2.5 * rng.standard_normal(rows))
    units = {"isolation": "GeV", "pt": "GeV", "mass": "GeV"}
    variables = {name: ("row", values, {"units": units.get(name, "")}) for name, values in columns.items()}
    region = np.where(np.abs(etas) < 1.5, "EB", "EE")
    event = np.arange(rows) + rows * np.int64(seed)
    return xr.Dataset(
        {**variables, "weight": ("row", weight), "category": ("row", region)},
        {"event": ("row", event), "id": ("row", row_identity(event, np.zeros(rows, np.int64)))},
    )
