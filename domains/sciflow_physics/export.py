"""ONNX export of one fold of a correction, preprocessing included."""

from __future__ import annotations

import contextlib
import copy
import json
import logging
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import sciflow
from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow_physics.model import Correction
from sciflow_physics.model.transport import Transport

__all__ = ["TOLERANCE", "Exported", "export_onnx", "typical_inputs"]

OPSET = 18
# |onnxruntime - torch| <= tolerance (1 + |torch|), in physical units. Single precision rounds a chain of splines to about
# 2e-5 in torch itself, so that only double precision can promise more.
TOLERANCE = {"float64": 1e-5, "float32": 2e-4}

_log = logging.getLogger(__name__)


class Exported(nn.Module):
    """What the graph computes: from the inputs of `names` to `outputs`, all in physical units.

    Inputs, as many as the correction needs: `features` (N, D) float64, 0 where absent; `conditions` (N, C) float64;
    `category` (N,) int64, the position in the list of categories, -1 for an unknown one; `uniform` (N, D) float64 in
    (0, 1), which place point masses in their bands; `noise` (N, D) float64, standard normal ("conditional" method);
    `mask` (N, D) bool, True where a feature is present. A graph draws no random numbers of its own.

    Outputs: `corrected`, `up`, `down` (N, D) float64 and `out_of_support` (N,) bool; without members no `up`, `down`.
    """

    def __init__(self, correction: Correction, fold: int, *, band: bool = True, precision: str = "float64") -> None:
        super().__init__()
        if precision not in TOLERANCE:
            raise UserError(f"precision {precision!r} is not one of {', '.join(TOLERANCE)}")
        transport = copy.deepcopy(correction.folds[fold])
        assert isinstance(transport, Transport)
        transport.flows.to(getattr(torch, precision))
        if not band:
            del transport.flows[1:]  # the graph need not hold members that nobody asked for
        self.transport, self.precision = transport, precision
        self.band = correction.band_factor if band and correction.members else 0.0
        masses = any(column.point_mass is not None for column in transport.features.columns)
        wanted = {
            "features": True,
            "conditions": bool(correction.roles.conditions),
            "category": bool(correction.categories),
            "uniform": masses,
            "noise": correction.method == "conditional",
            "mask": transport.maskable,
        }
        self.names = [name for name, needed in wanted.items() if needed]
        self.outputs = ["corrected", *(("up", "down") if self.band else ()), "out_of_support"]

    def forward(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        given = dict(zip(self.names, tensors, strict=True))
        x, mask = given["features"], given.get("mask")
        column = x[:, 0]
        model = self.transport
        conditions = given["conditions"] if "conditions" in given else x[:, :0]
        nominal, spread, outside = model.corrected(
            x,
            conditions,
            given["category"] if "category" in given else torch.zeros_like(column, dtype=torch.int64),
            given["uniform"] if "uniform" in given else torch.full_like(x, 0.5),
            given["noise"] if "noise" in given else torch.zeros_like(x),
            mask,
        )
        results = []
        for shift in (0.0, self.band, -self.band) if self.band else (0.0,):
            results.append(model.physical(nominal + shift * spread if shift else nominal, conditions, mask))
        return *results, outside


def export_onnx(
    correction: Correction,
    path: str | Path,
    *,
    fold: int = 0,
    band: bool = True,
    precision: str = "float64",
    opset: int = OPSET,
    check: bool = True,
) -> Path:
    """Write `path`, an ONNX file of one fold with an open batch dimension, and compare it with torch.

    Arguments:
        fold: which model; for events that were not used in the training any will do, for those that were it must be the
            fold of the event (`sciflow_physics.model.sample.fold_of`).
        band: with `up` and `down`, at the price of all members' networks; without members there is no band.
        precision: of the networks and splines in the graph, "float64" or "float32" (half the size); preprocessing is
            always float64.
        opset: of ONNX; 17 to 20 are tested. Written by torch's tracing exporter, whose graphs keep the batch open.
        check: run onnxruntime on batches of 1, 7 and 100 made-up rows and compare with torch in the same
            precision within `TOLERANCE`.

    Names, units, categories and the fold are in the metadata of the file under `sciflow`.

    Raises `UserError` if there is no such fold, or if the check fails; then no file is written.
    """
    path = Path(path)
    if not 0 <= fold < len(correction.folds):
        raise UserError(f"fold {fold}: the correction has the folds 0 to {len(correction.folds) - 1}")
    if path.suffix != ".onnx":
        raise UserError(f"{path}: the name of an ONNX file ends in .onnx")
    if not path.parent.is_dir():
        raise UserError(f"{path}: the folder {path.parent} does not exist")
    import onnx

    model = Exported(correction, fold, band=band, precision=precision).eval()
    example = tuple(typical_inputs(correction, fold, 5)[name] for name in model.names)
    with replacing(path) as beside:
        with torch.no_grad(), _quiet():
            torch.onnx.export(
                model,
                example,
                str(beside),
                dynamo=False,
                input_names=model.names,
                output_names=model.outputs,
                dynamic_axes={name: {0: "rows"} for name in [*model.names, *model.outputs]},
                opset_version=opset,
            )
        graph = onnx.load(str(beside))
        onnx.helper.set_model_props(graph, {"sciflow": json.dumps(_description(correction, fold))})
        graph.doc_string = f"{correction.method} correction of {', '.join(correction.roles.feature_names)}"
        onnx.checker.check_model(graph, full_check=True)
        onnx.save(graph, str(beside))
        if check:
            _compare(model, correction, fold, beside, path)
    return path


def typical_inputs(correction: Correction, fold: int, rows: int, seed: int = 0) -> dict[str, Tensor]:
    """Made-up rows inside the training region, by input name: a grid-free sample for tests and tracing."""
    model: Any = correction.folds[fold]
    size, generator = model.features.features, torch.Generator().manual_seed(seed)
    uniform = torch.rand(rows, len(model.lower), generator=generator, dtype=torch.float64)
    z = model.lower.clamp_min(-3) * (1 - uniform) + model.upper.clamp_max(3) * uniform
    with torch.no_grad():
        y, _ = model.features.inverse(z[:, :size])
        conditions, _ = model.conditions.inverse(z[:, size:])
        features = model.features.quantise(y)
    mask = torch.rand(rows, size, generator=generator) < 0.8
    return {
        "features": torch.where(mask, features, 0.0) if model.maskable else features,
        "conditions": conditions,
        "category": torch.randint(0, max(len(correction.categories), 1), (rows,), generator=generator),
        "uniform": torch.rand(rows, size, generator=generator, dtype=torch.float64).clamp(1e-9, 1 - 1e-9),
        "noise": torch.randn(rows, size, generator=generator, dtype=torch.float64),
        "mask": mask,
    }


def _description(correction: Correction, fold: int) -> dict[str, Any]:
    roles = correction.roles
    return {
        "sciflow": sciflow.__version__,
        "features": roles.feature_names,
        "conditions": roles.condition_names,
        "units": {name: role.unit for name, role in {**roles.features, **roles.conditions}.items()},
        "categories": correction.categories,
        "method": correction.method,
        "fold": fold,
        "folds": len(correction.folds),
        "seed": correction.seed,
        "roles": roles.to_dict(),
    }


def _compare(model: Exported, correction: Correction, fold: int, file: Path, path: Path) -> None:
    try:
        import onnxruntime
    except ImportError:
        _log.warning("%s: not compared with torch, because onnxruntime is not installed", path)
        return
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(file.read_bytes(), options, providers=["CPUExecutionProvider"])
    for rows in (1, 7, 100):
        made = typical_inputs(correction, fold, rows, seed=rows)
        with torch.no_grad():
            expected = model(*(made[name] for name in model.names))
        found = session.run(None, {name: made[name].numpy() for name in model.names})
        for name, ours, theirs in zip(model.outputs[:-1], expected, found, strict=False):
            theirs = torch.from_numpy(theirs)
            worst = float(((theirs - ours).abs() / (1 + ours.abs())).max()) if theirs.shape == ours.shape else float("inf")
            limit = TOLERANCE[model.precision]
            if not worst <= limit:
                raise UserError(
                    f"{path}: not written: {name!r} of onnxruntime differs from torch by {worst:.2g}, at most {limit:g}"
                )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter warns of every constant and prints through C++."""
    with warnings.catch_warnings(), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        warnings.simplefilter("ignore")
        yield
