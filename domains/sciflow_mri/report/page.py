"""One page on a reconstruction: verdict, picture, tests, what was measured, how it was made."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any, cast

import xarray as xr

from sciflow.certificate import Certificate
from sciflow.posterior.examination import examined
from sciflow.strict_json import loads
from sciflow_mri.plots.posterior import SCOPE
from sciflow_mri.posterior.nifti import placement

__all__ = ["facts", "page"]


def page(
    tree: xr.DataTree, png: bytes, *, evaluation: Mapping[str, Any] | None = None, rows: list[dict[str, Any]] | None = None,
    certificate: Certificate | None = None,
) -> str:  # fmt: skip
    """A self-contained HTML page.

    Arguments:
        tree: of `result_tree`.
        png: its picture.
        evaluation: name -> figure against a fully sampled scan.
        rows: of a volume: number, verdict and reason of each slice; the tree is then that of the slice that is shown.
        certificate: of a volume; otherwise that of the tree, held against its draws.
    """
    import jinja2
    from markupsafe import Markup

    certificate = examined(tree) if certificate is None else certificate
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sciflow_mri"), autoescape=True, trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )  # fmt: skip
    return environment.get_template("posterior.html.j2").render(
        title=str(tree.attrs.get("label", "reconstruction")), certificate=certificate, scope=SCOPE,
        flagged=int(tree.attrs.get("out_of_distribution", -1)), warning=str(tree.attrs.get("warning", "")),
        picture=base64.b64encode(png).decode("ascii"), tests=Markup(certificate.to_html()), facts=facts(tree),
        evaluation=dict(evaluation or {}), rows=rows or [],
    )  # fmt: skip


def facts(tree: xr.DataTree) -> list[tuple[str, str]]:
    """What was measured and how the draws were made, in words."""
    attrs = tree.attrs
    posterior, images, observed = (cast(Any, tree[name]) for name in ("posterior", "images", "observed_data"))
    draws, mask, coils = posterior["x"], observed["mask"], observed.sizes["coil"]
    unknown = placement(images.attrs)[1]
    voxel = images.attrs.get("voxel_size_mm")
    place = "" if voxel is None else "voxel (slice, y, x) " + " x ".join(f"{float(size):.3g}" for size in voxel) + " mm"
    unit = "lines" if mask.ndim == 1 else "points"
    found = [
        ("image", f"{draws.sizes['image_y']} x {draws.sizes['image_x']}, slice {attrs.get('slice', 0)}"),
        ("place", "; ".join(text for text in (place, unknown) if text)),
        ("measured", f"{int(mask.sum())} of {mask.size} {unit}, R = {float(attrs['acceleration']):.3g}, {coils} coils"),
        ("noise", f"{float(attrs['sigma']):.4g} per real and imaginary part (root mean square over coils), units of the scan"),
        ("scale", f"{float(attrs['scale']):.4g} units of the scan are 1 in images of the prior"),
        ("draws", f"{draws.sizes['draw']}, seed {attrs.get('seed', '')}"),
        ("method", str(attrs.get("method", ""))),
    ]
    for name in ("retrospective", "prewhitened", "recentred_from", "format"):
        if name in attrs:
            found.append((name.replace("_", " "), str(attrs[name])))
    for name in ("statistics", "calls", "hashes", "versions"):
        entries = loads(attrs[name]) if name in attrs else {}
        if entries:
            found.append((name, ", ".join(f"{key} {_number(value)}" for key, value in entries.items())))
    return found


def _number(value: Any) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
