"""One call: measure, judge, draw, write."""

from __future__ import annotations

import base64
import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

import sciflow
from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import replacing
from sciflow.strict_json import dumps
from sciflow_physics.plots import write_figure
from sciflow_physics.report.figures import figures
from sciflow_physics.report.measure import Measurements, measure
from sciflow_physics.report.verdict import certify

__all__ = ["closure"]

_PACKAGES = ("torch", "numpy", "scikit-learn")


def closure(
    before: xr.Dataset,
    after: xr.Dataset,
    data: xr.Dataset,
    roles: Any,
    *,
    folder: str | Path,
    seed: int = 0,
    bootstrap: int = 200,
    replicates: int = 400,
    folds: int = 5,
    floor_splits: int = 2,
    auc_excess: float = 0.03,
    margin: float = 0.01,
    title: str = "Closure of a simulation-to-data correction",
    context: Mapping[str, Any] | None = None,
    trees: dict[str, Any] | None = None,
    progress: bool = True,
) -> Certificate:
    """Write the closure report into `folder` and return its certificate.

    Arguments:
        before: rows of the simulation; after: what `Correction.apply` made of them; data: rows of the data.
        roles: `sciflow_physics.data.roles.Roles` of the three.
        seed, bootstrap, replicates, folds, floor_splits, trees: see `sciflow_physics.report.measure`.
        auc_excess, margin: thresholds, see `sciflow_physics.report.certify`.
        context: what should be on record besides (names and hashes of files and model).

    Writes `closure.html` (figures embedded), `certificate.json`, `measurements.json` and the figures as PNG. The two
    JSON files come last, so that a certificate is only there if its report is complete.

    Raises `UserError` if columns are missing, row counts differ or a value that enters is not finite.
    """
    folder = Path(folder)
    for name, dataset in (("simulation", before), ("data", data)):
        _refuse_non_finite(name, dataset, roles)
    settings = {"seed": seed, "bootstrap": bootstrap, "replicates": replicates, "folds": folds, "floor_splits": floor_splits}
    measurements = measure(before, after, data, roles, **settings, trees=trees, progress=progress)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for old in ("certificate.json", "closure.html", "measurements.json"):
            (folder / old).unlink(missing_ok=True)  # an old verdict must not lie beside new figures
        captions: dict[str, str] = {}
        for name, caption, drawing in figures(measurements, before, after, data, roles, margin=margin):
            write_figure(drawing, folder / f"{name}.png")
            captions[name] = caption
        record = {
            "hashes": {"simulation": _digest(before), "corrected": _digest(after), "data": _digest(data)},
            "versions": {"sciflow": sciflow.__version__, **{name: importlib.metadata.version(name) for name in _PACKAGES}},
            **(context or {}),
        }
        certificate = certify(
            measurements,
            auc_excess=auc_excess,
            margin=margin,
            subject=title,
            context=record,
            figures={name: (f"{name}.png", caption) for name, caption in captions.items()},
        )
        with replacing(folder / "closure.html") as beside:
            beside.write_text(_page(measurements, certificate, captions, folder, title), encoding="utf-8")
        with replacing(folder / "measurements.json") as beside:
            beside.write_text(dumps(measurements.to_dict()) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{error.filename or folder}: the report cannot be written: {error.strerror or error}") from error
    certificate.write(folder / "certificate.json")
    return certificate


def _page(measurements: Measurements, certificate: Certificate, captions: Mapping[str, str], folder: Path, title: str) -> str:
    import jinja2
    from markupsafe import Markup, escape

    def picture(name: str) -> Markup:
        if name not in captions:
            return Markup("")
        encoded = base64.b64encode((folder / f"{name}.png").read_bytes()).decode("ascii")
        caption = escape(captions[name])
        return Markup(
            f'<figure><img src="data:image/png;base64,{encoded}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'
        )

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sciflow_physics"), autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.tests["match"] = lambda text, start: str(text).startswith(start)
    return environment.get_template("closure.html.j2").render(
        title=title,
        m=measurements,
        certificate=certificate,
        tests=Markup(certificate.to_html()),
        pictures=list(captions),
        picture=picture,
        pm=lambda value, error: f"{value:.3g} ± {error:.2g}",
    )


def _refuse_non_finite(name: str, dataset: xr.Dataset, roles: Any) -> None:
    present = np.asarray(roles.mask(dataset), dtype=bool)
    columns = {feature: dataset[feature].values[present[:, index]] for index, feature in enumerate(roles.feature_names)}
    columns |= {other: dataset[other].values for other in roles.condition_names}
    for column, values in columns.items():
        bad = int((~np.isfinite(values)).sum())
        if bad:
            raise UserError(f"the {name} has {bad} non-finite values in column {column!r}: remove these rows first")


def _digest(dataset: xr.Dataset) -> str:
    """SHA-256 over names and values, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(map(str, dataset.variables)):
        values = dataset[name].values
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(values.astype(str) if values.dtype == object else values).tobytes())
    return digest.hexdigest()
