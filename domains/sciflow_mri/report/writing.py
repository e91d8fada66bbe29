"""The files of one reconstructed slice, each whole or not at all, the page last."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.store import certificate_of, to_netcdf
from sciflow_mri.plots import posterior_figure, write_figure
from sciflow_mri.posterior.nifti import write_nifti
from sciflow_mri.report.page import page

__all__ = [
    "CERTIFICATE",
    "DRAWS",
    "EVALUATION",
    "NAMES",
    "TRUTH",
    "VOLUME",
    "clear",
    "folder_for",
    "write_images",
    "write_picture",
    "write_results",
]

DRAWS, MEAN, STD, PICTURE, PAGE, CERTIFICATE, EVALUATION, TRUTH = (
    "posterior.nc", "mean.nii.gz", "std.nii.gz", "posterior.png", "report.html", "certificate.json", "evaluation.json",
    "truth.nii.gz",
)  # fmt: skip
VOLUME, MANY = "images.nc", "posterior.zarr"  # of all slices
NAMES = (DRAWS, MEAN, STD, PICTURE, PAGE, CERTIFICATE)


def write_results(tree: xr.DataTree, folder: str | Path) -> list[Path]:
    """Write a tree of `result_tree` into `folder`: posterior.nc, mean.nii.gz, std.nii.gz, posterior.png, report.html and
    certificate.json; returns their paths.

    The pages of an older result are removed first and written last, so that no verdict lies beside other draws. Raises
    `UserError` if something cannot be written.
    """
    folder = folder_for(folder)
    clear(folder)
    written = [to_netcdf(tree, folder / DRAWS), *write_images(tree["images"], folder), *write_picture(tree, folder)]
    certificate = certificate_of(tree)
    assert certificate is not None
    return [*written, certificate.write(folder / CERTIFICATE)]


def clear(folder: Path) -> None:
    """Remove what speaks about older draws."""
    for old in (CERTIFICATE, PAGE, PICTURE, EVALUATION, TRUTH):
        (folder / old).unlink(missing_ok=True)


def write_images(images: Any, folder: Path) -> list[Path]:
    """mean.nii.gz (magnitude of the posterior mean) and std.nii.gz of a group `images`, of one slice or of several."""
    attrs = images.attrs
    mean, std = np.abs(images["mean"].values), images["std"].values
    return [
        write_nifti(folder / MEAN, mean, attrs, "posterior mean"),
        write_nifti(folder / STD, std, attrs, "posterior std"),
    ]


def write_picture(
    tree: xr.DataTree, folder: Path, *, truth: NDArray[np.floating] | None = None, evaluation: Mapping[str, Any] | None = None,
    shown: Mapping[str, str] | None = None, **more: Any,
) -> list[Path]:  # fmt: skip
    """posterior.png and report.html; with `truth`, `evaluation` and `shown` (text in the picture) where those are known."""
    picture = write_figure(posterior_figure(tree, truth=truth, figures=dict(shown or {})), folder / PICTURE)
    target = folder / PAGE
    try:
        with replacing(target) as beside:
            beside.write_text(page(tree, picture.read_bytes(), evaluation=evaluation, **more), encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: the report cannot be written: {reason(error)}") from error
    return [picture, target]


def folder_for(folder: str | Path, *, volume: bool | None = None) -> Path:
    """The folder, made if it is missing. Raises `UserError` if it is a file or cannot be made.

    Also, where `volume` says what is to be written, if it holds the other kind of result: of one slice, or of a volume.
    """
    folder = Path(folder)
    if volume is not None and (folder / (DRAWS if volume else MANY)).exists():
        there, new = ("one slice", "a volume") if volume else ("a volume", "one slice")
        raise UserError(f"{folder}: holds the result of {there}: give another folder for that of {new}, or remove it")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"{folder}: is a file; name a folder for the results")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: the folder cannot be made: {reason(error)}") from error
    return folder
