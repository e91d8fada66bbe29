"""Results <-> `xarray.DataTree` <-> netCDF and Zarr, in the layout that ArviZ (>= 1) opens."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray
from torch import Tensor

from sciflow.errors import UserError
from sciflow.files import reason, remove, replace_folder, temporary
from sciflow.posterior.bound_draws import check_bound, resampled
from sciflow.posterior.calls import Calls
from sciflow.posterior.diagnostics.battery import Battery
from sciflow.posterior.diagnostics.ranks import Ranks
from sciflow.posterior.log_evidence import Evidence
from sciflow.posterior.rank_figures import rank_group, with_rank_tests
from sciflow.posterior.result import Estimate, Posterior, Result
from sciflow.store import certificate_of, to_netcdf
from sciflow.store.binding import HASHES, bound
from sciflow.store.files import certified, consolidate
from sciflow.store.streaming import is_draws
from sciflow.store.tree import data_group, library, numpy_of, versions
from sciflow.strict_json import dumps, loads, plain

__all__ = ["STATISTICS", "from_tree", "to_tree", "write"]

# of a result -> name in files, meaning
STATISTICS = {
    "log_weight": ("log_weight", "unnormalised log-weight of the draw"),
    "log_prob": ("log_prob", "log of the unnormalised density of the target at the draw"),
    "log_likelihood": ("log_likelihood", "log p(observation | draw)"),
    "log_proposal": ("log_q", "log-density of what the draw was proposed from"),
}
_WEIGHTED = (
    "weighted draws: ArviZ ignores sample_stats/log_weight, so its means, intervals and plots are those of the proposal; "
    "use to_tree(result, equal_weights=True)"
)
_FILES = (".h5", ".hdf5", ".nc4", ".cdf", ".csv", ".json", ".npz", ".npy", ".parquet", ".root", ".pt", ".html")
_ESTIMATE = "an estimate: these draws are not the posterior's, in no limit of computation"


def to_tree(
    result: Result, *, names: Sequence[str] | None = None, dims: Sequence[str] | None = None,
    coords: Mapping[str, Any] | None = None, observed: Mapping[str, Any] | None = None,
    constants: Mapping[str, Any] | None = None, calibration: Battery | Iterable[Ranks] = (), recalibrated: Any = None,
    hashes: Mapping[str, str] | None = None, units: Mapping[str, str] | str | None = None, equal_weights: bool = False,
    seed: int = 0,
) -> xarray.DataTree:  # fmt: skip
    """The result as a tree: groups `posterior` (for an `Estimate`: `estimate`), `sample_stats`, and what else there is of
    `observed_data`, `constant_data`, `evidence`, `traces`, `prior_sbc` and `recalibrated`; certificate, method, seed, calls,
    versions and hashes in the attributes. No tree is without a certificate, which has the sha256 of draws and weights.

    Arguments:
        names: of the parameters along the last dimension of the event; by default those of the result.
        dims: names of the dimensions of the event; "feature" for vectors.
        coords: dimension -> values.
        observed, constants: name -> array; the sha256 of each observed one is recorded.
        calibration: a `Battery`, or `Ranks`; the certificate gets their tests, so that no figure shows what no test judges.
        recalibrated: `Intervals` of `Recalibration.intervals`: a labelled group beside the draws, which stay as they are.
        hashes: of model and data files.
        units: of the parameters, name -> unit, or one for all; figures show them.
        equal_weights: resample weighted draws (systematically, shuffled) into one chain: what ArviZ's summaries need.
        seed: of the resampling.

    Raises `UserError` if the result's certificate is bound to other draws (a file was read, and its draws changed).
    """
    check_bound(result)
    if equal_weights:
        result = resampled(result, seed)
    x = numpy_of(result.x)
    names = result.names if names is None else names
    dims, coordinates = _coordinates(x.shape, names, dims, coords)
    ranks = rank_group(calibration)
    certificate = result.certificate if ranks is None else with_rank_tests(result.certificate, calibration, ranks)
    root: dict[str, Any] = {"kind": result.group, "versions": versions()}
    for name, entry in result.describe().items():
        if name != "evidence":
            root[name] = entry if isinstance(entry, (str, int)) else dumps(plain(entry, name), indent=None)
    warned = {}
    if result.log_weight is not None:
        warned["weights"] = _WEIGHTED
    elif equal_weights:
        root["equal_weights"] = f"resampled systematically, seed {seed}"
    if result.group == "estimate":
        warned["estimate"] = _ESTIMATE
    if warned:
        root["warning"] = "; ".join(warned.values())
    if recalibrated is not None:
        root["recalibrated"] = recalibrated.text
    known = {name: _sha256(entry) for name, entry in (observed or {}).items()}
    root["hashes"] = dumps({**known, **(hashes or {})}, indent=None)
    attributes = {**library(), **({"warning": root["warning"]} if warned else {})}
    index = {"chain": np.arange(x.shape[0]), "draw": np.arange(x.shape[1])}
    groups = {
        "/": xarray.Dataset(attrs=root),
        result.group: xarray.Dataset(
            {"x": (["chain", "draw", *dims], x, _units(units, coordinates.get(dims[-1]) if dims else None))},
            {**index, **coordinates},
            attributes,
        ),
        "sample_stats": xarray.Dataset(_statistics(result), index, attributes),
    }
    for group, entries in (("observed_data", observed), ("constant_data", constants)):
        if entries is not None:
            groups[group] = data_group(group, entries, (), [], {})
    if result.evidence is not None:
        log_value, error, method, replicates = result.evidence
        variables = {"log_value": log_value, "error": error, "replicates": ("replicate", np.asarray(replicates, dtype=float))}
        groups["evidence"] = xarray.Dataset(variables, attrs={"method": method})
    if result.traces:
        groups["traces"] = data_group("traces", result.traces, (), [], {})
    if ranks is not None:
        groups["prior_sbc"] = ranks
    if recalibrated is not None:
        groups["recalibrated"] = recalibrated.dataset(dims, coordinates)
    tree = xarray.DataTree.from_dict(groups)
    context = {name: entry for name, entry in certificate.context.items() if name != HASHES}
    tree.attrs["certificate"] = bound(replace(certificate, context=context), tree).to_json()
    return tree


def from_tree(tree: xarray.DataTree) -> Posterior | Estimate:
    """The result in a tree of `to_tree`, or in what `read_draws` returns of its file.

    Raises `UserError` if the tree holds no result of a method (draws of `sciflow.draw` have no calls, for instance).
    """
    kind = Estimate if "estimate" in tree.children else Posterior
    certificate = certificate_of(tree)
    if kind.group not in tree.children or certificate is None or "calls" not in tree.attrs:
        raise UserError("the tree holds no result: it needs draws, a certificate and the attribute 'calls' (see to_tree)")
    stats = tree["sample_stats"]
    found: dict[str, Any] = {name: _tensor(stats[stored]) for name, (stored, _) in STATISTICS.items() if stored in stats}
    last = tree[kind.group].coords.get(str(tree[kind.group]["x"].dims[-1]))
    if last is not None and last.dtype.kind in "UO":
        found["names"] = tuple(map(str, last.values))
    evidence = None
    if "evidence" in tree.children:
        group: Any = tree["evidence"]
        replicates = tuple(float(value) for value in group["replicates"].values)
        evidence = Evidence(float(group["log_value"]), float(group["error"]), str(group.attrs["method"]), replicates)
    traces = (
        {str(name): _tensor(entry) for name, entry in tree["traces"].data_vars.items()} if "traces" in tree.children else {}
    )
    return kind(
        _tensor(tree[kind.group]["x"]), **found, evidence=evidence, calls=Calls(**loads(tree.attrs["calls"])),
        statistics=loads(tree.attrs["statistics"]), traces=traces, method=tree.attrs["method"], seed=int(tree.attrs["seed"]),
        certificate=certificate,
    )  # fmt: skip


def write(result: Result | xarray.DataTree, path: str | Path, **options: Any) -> Path:
    """Write a result (`options` as in `to_tree`) or its tree: netCDF for `.nc`, a Zarr folder otherwise; whole or not at all.

    `read_draws` reads both. Raises `UserError` if the draws have no certificate or that of others, or if `path` holds something
    else.
    """
    path = Path(path)
    tree = to_tree(result, **options) if isinstance(result, Result) else result
    if certificate_of(tree) is None:
        raise UserError(f"{path}: the draws have no certificate: nothing is written without one")
    if path.suffix == ".nc":
        return to_netcdf(tree, path)
    if path.suffix in _FILES:
        raise UserError(f"{path}: draws are written as netCDF (a path ending in .nc) or as a Zarr folder (such as draws.zarr)")
    if path.exists() and not is_draws(path):
        raise UserError(f"{path} exists and holds no draws: it is not overwritten, give another path")
    beside, tree = temporary(path), certified(tree)
    remove(beside)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Zarr 3 has no specification of numpy's fixed-width strings yet
            tree.to_zarr(beside, mode="w", zarr_format=3, consolidated=False)
        consolidate(beside)
        replace_folder(beside, path)
    except BaseException as error:
        remove(beside)
        if isinstance(error, OSError):
            raise UserError(f"{path}: the draws cannot be written: {reason(error)}") from error
        raise
    return path


def _coordinates(
    shape: tuple[int, ...], names: Sequence[str] | None, dims: Sequence[str] | None, coords: Mapping[str, Any] | None
) -> tuple[list[str], dict[str, Any]]:
    event = shape[2:]
    default = ["feature"] if len(event) == 1 else [f"x_dim_{k}" for k in range(len(event))]
    found = default if dims is None else [dims] if isinstance(dims, str) else [str(name) for name in dims]
    if len(found) != len(event) or len({"chain", "draw", *found}) != len(event) + 2:
        raise UserError(f"dims={found}: give {len(event)} different names for the event shape {event}, not chain and draw")
    coordinates = dict(coords or {})
    if names is not None:
        if not event:
            raise UserError("names: the event is a scalar, it has no features to name")
        coordinates.setdefault(found[-1], list(names))
    for name, values in coordinates.items():
        if name not in found:
            raise UserError(f"coords: {name!r} is not a dimension of the draws; they have {found}")
        if np.shape(values) != (event[found.index(name)],):
            raise UserError(
                f"coords: {name!r} has shape {np.shape(values)}, the dimension has length {event[found.index(name)]}"
            )
    return found, coordinates


def _statistics(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = {
        stored: (["chain", "draw"], numpy_of(getattr(result, name)), {"description": text})
        for name, (stored, text) in STATISTICS.items()
        if getattr(result, name) is not None
    }
    for name, count in result.calls.as_dict().items():
        found[f"n_{name}"] = ((), count, {"description": f"{name.replace('_', ' ')} calls of the whole run"})
    return found


def _units(units: Mapping[str, str] | str | None, names: Any) -> dict[str, Any]:
    """As an attribute: one unit, or one per name in JSON."""
    if units is None or isinstance(units, str):
        return {} if units is None else {"units": units}
    known = [] if names is None else [str(name) for name in names]
    strange = sorted(set(units) - set(known))
    if strange:
        raise UserError(f"units: there is no parameter {strange[0]!r}; the draws have {known or 'no names: give names='}")
    return {"units": dumps(dict(units), indent=None)}


def _tensor(values: Any) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(values.values))


def _sha256(values: Any) -> str:
    array = np.ascontiguousarray(numpy_of(values))
    return hashlib.sha256(str((array.dtype, array.shape)).encode() + array.tobytes()).hexdigest()
