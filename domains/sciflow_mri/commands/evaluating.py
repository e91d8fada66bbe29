"""What `evaluate` does: a result against the fully sampled scan."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.strict_json import dumps
from sciflow_mri.commands.scans import prepared_scan
from sciflow_mri.commands.work import read_result
from sciflow_mri.data.retrospective import crop_kspace
from sciflow_mri.posterior.nifti import write_nifti
from sciflow_mri.posterior.reference import Evaluation, evaluate, reference
from sciflow_mri.posterior.scan_files import read_dataset
from sciflow_mri.report.writing import EVALUATION, TRUTH, VOLUME, write_picture

__all__ = ["compare", "evaluate_result", "written"]

_SHOWN = {"PSNR": "{:.2f} dB", "SSIM": "{:.3f}", "PSNR zero-filled": "{:.2f} dB"}  # in the picture
_OTHER = 0.1  # share of the energy of the measured data that the coils of the truth may leave unexplained


def evaluate_result(result: Path, truth: Path, choices: dict[str, Any]) -> list[str]:
    """Compare, write evaluation.json, picture and page beside the result; returns lines to print."""
    if (result / VOLUME).is_file():
        images = read_dataset(result / VOLUME, "images of a volume")
        return _volume(images, _cropped(images, prepared_scan(truth, choices), str(truth)), result, truth.name)
    tree, folder = read_result(result)
    found = compare(tree, prepared_scan(truth, choices), str(truth))
    return written(tree, found, folder, truth.name)


def compare(tree: xr.DataTree, full: xr.Dataset, label: str) -> Evaluation:
    """The figures of a result, given the full scan; larger k-space is cropped to the result's as that was."""
    full = _cropped(tree["images"], full, label)
    slice = int(tree.attrs.get("slice", 0)) if full.sizes["slice"] > 1 else 0
    if 0 <= slice < full.sizes["slice"] and "observed_data" in tree.children:
        _refuse_another(tree["observed_data"], full, slice, label)
    return evaluate(tree["images"], reference(full, slice))


def _refuse_another(observed: Any, full: xr.Dataset, slice: int, label: str) -> None:
    """Coils may have been whitened or compressed since, so that what counts is how much of the data they span."""
    where = np.broadcast_to(observed["mask"].values if observed["mask"].ndim == 2 else observed["mask"].values[:, None],
                            observed["kspace"].shape[1:])  # fmt: skip
    given = observed["kspace"].values[:, where].astype(complex).T

    def unexplained(number: int) -> float:
        coils = full["kspace"].values[number][:, where].astype(complex).T
        gap = given - coils @ np.linalg.lstsq(coils, given, rcond=None)[0]
        return float(np.square(np.abs(gap)).sum() / np.square(np.abs(given)).sum())

    shares = [unexplained(number) for number in range(full.sizes["slice"])]
    best = int(np.argmin(shares))
    if shares[slice] > _OTHER or shares[best] < shares[slice] / 4:
        advice = f"slice {best} does: choose it (--slices {best})" if best != slice else "is it another scan?"
        raise UserError(
            f"{label}: slice {slice} leaves {100 * shares[slice]:.2g} % of the result's measured data unexplained, the truth "
            f"would leave noise; {advice if shares[best] <= _OTHER else 'is it another scan?'}"
        )


def _cropped(images: Any, full: xr.Dataset, label: str) -> xr.Dataset:
    size = (images.sizes["image_y"], images.sizes["image_x"])
    there = (full.sizes["ky"], full.sizes["kx"])
    if there != size:
        if there[0] < size[0] or there[1] < size[1]:
            raise UserError(
                f"{label}: k-space has {there[0]} x {there[1]} points, the result {size[0]} x {size[1]}: another scan?"
            )
        full = crop_kspace(full, size)
    return full


def written(tree: xr.DataTree, found: Evaluation, folder: Path, truth: str) -> list[str]:
    """Write evaluation.json, picture and page; returns the figures as lines, then the files."""
    shown = {name: text.format(found.figures[name]) for name, text in _SHOWN.items()}
    lines = {name: f"{value:.4g}" for name, value in found.figures.items()}
    image = write_nifti(folder / TRUTH, found.truth, tree["images"].attrs, "fully sampled, scaled to the mean")
    target = _record(folder, {"truth": truth, "figures": lines, "values": found.figures, "shown": shown})
    files = write_picture(tree, folder, truth=found.truth, evaluation=lines, shown=shown)
    return [*(f"{name:<36} {value}" for name, value in lines.items()), *(str(file) for file in (image, target, *files))]


def _volume(images: xr.Dataset, full: xr.Dataset, folder: Path, truth: str) -> list[str]:
    """Figures of each slice, and their mean and spread."""
    if full.sizes["slice"] != images.sizes["slice"]:
        raise UserError(f"{truth}: has {full.sizes['slice']} slices, the result {images.sizes['slice']}: another scan?")
    found = {}
    for number in range(images.sizes["slice"]):
        one = images.isel(slice=number)
        if bool(one["std"].notnull().all()):
            found[str(number)] = evaluate(one, reference(full, number)).figures
    names = next(iter(found.values()))
    table = {name: np.array([figures[name] for figures in found.values()]) for name in names}
    lines = {name: f"{values.mean():.4g} (over slices: {values.std():.2g})" for name, values in table.items()}
    target = _record(folder, {"truth": truth, "figures": lines, "slices": found})
    return [*(f"{name:<36} {value}" for name, value in lines.items()), str(target)]


def _record(folder: Path, content: dict[str, Any]) -> Path:
    target = folder / EVALUATION
    try:
        with replacing(target) as beside:
            beside.write_text(dumps(content) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{target}: cannot be written: {reason(error)}") from error
    return target
