"""What `sample --volume` does: all slices, resumable, on a cluster if there is one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior.examination import examined
from sciflow.store import to_netcdf
from sciflow_mri.commands.priors import Prior
from sciflow_mri.posterior.drawing import flagged, in_bf16
from sciflow_mri.posterior.joint import acquired
from sciflow_mri.posterior.results import result_tree
from sciflow_mri.posterior.volume import reconstruct_volume, volume_images
from sciflow_mri.report.writing import CERTIFICATE, MANY, VOLUME, clear, write_images, write_picture

__all__ = ["sample_volume"]


def sample_volume(scan: xr.Dataset, prior: Prior, folder: Path, **settings: Any) -> tuple[Certificate, bool]:
    """Draws of all slices and the files on them; returns the certificate and whether a slice is out of distribution."""
    try:
        many = reconstruct_volume(scan, prior.flow, folder / MANY, **settings)
    except UserError as error:
        raise UserError(str(error).replace("resume=False", "--again")) from error
    clear(folder)
    measured = {"sigma": settings["sigma"]} if "sigma" in settings else {}
    images = volume_images(many, scan, **measured)
    files = [many.path, to_netcdf(xr.DataTree(images), folder / VOLUME), *write_images(images, folder)]
    suspects, rows = [], []
    for number in range(len(many)):
        if number in many.failures:
            rows.append({"number": number, "verdict": "", "reason": many.failures[number]})
            continue
        found = many[number]
        suspects += [number] if flagged(found.statistics) else []
        rows.append({"number": number, "verdict": found.certificate.verdict, "reason": " ".join(found.certificate.reasons)})
    shown = suspects[0] if suspects else _middle(many.good)
    found = many[shown]
    how = {"joint": settings["joint"], "seed": found.seed, "bf16": in_bf16(settings["sampler"])}  # as the slice was drawn
    acquisition = acquired(scan, shown, prior.flow, **how, **measured)
    tree = result_tree(found, acquisition, scan, shown, prior=prior.flow)
    if suspects:
        tree.attrs |= {"out_of_distribution": 1, "warning": f"out of distribution: slices {', '.join(map(str, suspects))}"}
    certificate = examined(many.tree)
    files += write_picture(tree, folder, rows=rows, certificate=certificate)
    for file in [*files, certificate.write(folder / CERTIFICATE)]:
        click.echo(file)
    return certificate, bool(suspects)


def _middle(good: np.ndarray) -> int:
    """The slice with draws that is nearest to the middle."""
    there = np.flatnonzero(good)
    return int(there[np.abs(there - len(good) // 2).argmin()])
