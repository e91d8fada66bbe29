"""The domain's main job on an embedded pair of samples: fit, apply, closure report."""

from __future__ import annotations

import importlib.resources
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow_physics.data import read
from sciflow_physics.data.roles import Roles

__all__ = ["pair", "pipeline", "run"]

_log = logging.getLogger(__name__)

SIMULATION, DATA, ROLES = "demo_simulation.parquet", "demo_data.parquet", "demo.toml"

# small: about a minute on two cores
FIT: dict[str, Any] = {"folds": 2, "members": 2, "epochs": 24, "member_epochs": 6, "hidden": (32, 32), "bins": 6}
REPORT: dict[str, Any] = {"bootstrap": 100, "replicates": 200, "folds": 3, "floor_splits": 1}


def pair() -> tuple[Path, Path, Path]:
    """The embedded simulation, data and roles. Raises `UserError` if the installation lacks them."""
    folder = Path(str(importlib.resources.files("sciflow_physics") / "samples"))
    found = folder / SIMULATION, folder / DATA, folder / ROLES
    for path in found:
        if not path.is_file():
            raise UserError(f"{path}: missing from this installation; reinstall sciflow")
    return found


def run(output: Path) -> list[Path]:
    """Correct the embedded simulation to the embedded data; returns the files that were written below `output`."""
    simulation, data, roles = pair()
    return pipeline(simulation, data, Roles.from_file(roles), Path(output))[1]


def pipeline(
    simulation: Path,
    data: Path,
    roles: Roles,
    output: Path,
    *,
    seed: int = 0,
    fit: Mapping[str, Any] | None = None,
    report: Mapping[str, Any] | None = None,
    title: str = "Simulation to data: embedded sample",
) -> tuple[Certificate, list[Path]]:
    """What `fit`, `apply` and `validate` do on the command line, one after the other.

    Writes below `output`: `correction/` (the model), `corrected.root` (the simulation with the new columns) and
    `report/` (`closure.html`, figures, JSON). Returns the certificate and the files.
    """
    import sciflow
    from sciflow_physics.model import fit_correction
    from sciflow_physics.report import closure
    from sciflow_physics.writing.streaming import apply_file

    start = time.monotonic()
    output.mkdir(parents=True, exist_ok=True)
    rows = {path: read(path, roles) for path in (simulation, data)}
    correction = fit_correction(rows[simulation], rows[data], roles, seed=seed, **{**FIT, **(fit or {})})
    _log.info("fitted in %.0f s", time.monotonic() - start)
    sciflow.save(correction, output / "correction", metadata={"simulation": simulation.name, "data": data.name, "seed": seed})
    applied = apply_file(correction, simulation, output / "corrected.root", roles)
    _log.info("%s", applied)
    certificate = closure(
        rows[simulation],
        correction.apply(rows[simulation]),
        rows[data],
        roles,
        folder=output / "report",
        seed=seed,
        title=title,
        context={"files": {"simulation": simulation.name, "data": data.name}},
        **{**REPORT, **(report or {})},
    )
    _log.info("%s: %s after %.0f s", title, certificate.verdict, time.monotonic() - start)
    made = [output / "corrected.root", *(output / "correction").rglob("*"), *(output / "report").iterdir()]
    return certificate, sorted(path for path in made if path.is_file())
