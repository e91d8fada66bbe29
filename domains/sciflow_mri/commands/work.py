"""What `prepare`, `sample` and `report` do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import numpy as np
import xarray as xr

from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior.examination import examined
from sciflow.posterior.samplers import UntilSettled
from sciflow.store import read_draws
from sciflow_mri.commands.priors import prior_of
from sciflow_mri.commands.scans import prepared_scan
from sciflow_mri.data.scan import label_of
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.reconstruction import reconstruct
from sciflow_mri.posterior.scan_files import write_scan
from sciflow_mri.report.writing import DRAWS, EVALUATION, MANY, TRUTH, folder_for, write_images, write_picture, write_results

__all__ = ["exit_code", "prepare_scan", "read_result", "report_result", "sample_scan"]

_ENOUGH = {"pass": ("passed",), "warn": ("passed", "warned")}


def prepare_scan(path: Path, output: Path, choices: dict[str, Any]) -> str:
    """Write the prepared scan; returns one line on it."""
    if output.suffix != ".nc":
        raise UserError(f"--output {output}: a prepared scan is written as netCDF: give a name that ends in .nc")
    scan = prepared_scan(path, choices)
    write_scan(scan, output)
    mask, sizes = scan["mask"], scan.sizes
    first, last = scan.attrs["calibration"]
    voxel = scan.attrs.get("voxel_size_mm")
    place = "voxel size unknown" if voxel is None else "voxels " + " x ".join(f"{size:.3g}" for size in voxel) + " mm"
    return (
        f"{output}: {sizes['slice']} slices of {sizes['ky']} x {sizes['kx']}, {sizes['coil']} coils, {int(mask.sum())} of "
        f"{mask.size} {'lines' if mask.ndim == 1 else 'points'}, R = {mask.size / int(mask.sum()):.3g}, calibration lines "
        f"{first} to {last - 1}, {place}"
    )


def sample_scan(
    path: Path, output: Path, choices: dict[str, Any], *, prior: str | None, number: int | None, volume: bool, draws: int,
    chunk: int, sigma: float | None, maps: str, precision: str, device: str | None, seed: int, settle: int, dask: str | None,
    workers: int | None, again: bool, require: str | None, force: bool,
) -> int:  # fmt: skip
    """Draws of one slice or of all, their files, and the exit code."""
    if not volume and (dask is not None or again):
        raise UserError("--dask and --again are for volumes: say --volume to reconstruct all slices")
    if volume and number is not None:
        raise UserError(f"--slice {number} and --volume: give one of the two (--slices chooses some of a raw file)")
    scan = prepared_scan(path, choices)
    count = scan.sizes["slice"]
    if number is None and not volume and count > 1:
        raise UserError(f"{label_of(scan)}: has {count} slices: choose one with --slice 0 ... {count - 1}, or say --volume")
    chosen = prior_of(prior, scan, device)
    folder_for(output, volume=volume)
    sampler = default_sampler(chosen.flow, chunk=min(chunk, draws), bf16=precision == "bf16", **chosen.settings)
    if settle:
        if not hasattr(sampler, "doubled"):
            raise UserError(f"--settle {settle}: {chosen.name} draws without moves, so that there is nothing to double")
        sampler = UntilSettled(sampler, settle)
    settings = {"draws": draws, "seed": seed, "sampler": sampler, "observation": chosen.look, "joint": maps == "joint"}
    settings |= {} if sigma is None else {"sigma": sigma}
    if volume:
        from sciflow_mri.commands.volumes import sample_volume

        certificate, flagged = sample_volume(
            scan, chosen, output, dask=dask, workers=workers, resume=not again, device=device, **settings
        )
    else:
        tree = reconstruct(scan, chosen.flow, slice=number or 0, **settings)
        tree.attrs["prior"] = chosen.name
        for file in write_results(tree, output):
            click.echo(file)
        certificate, flagged = examined(tree), int(tree.attrs["out_of_distribution"]) == 1
    return exit_code(certificate, flagged, require, force, str(output))


def report_result(result: Path, output: Path | None, require: str | None, force: bool) -> int:
    """Images, picture and page of a result again; returns the exit code."""
    if (result / MANY).is_dir():
        raise UserError(f"{result}: is a volume: its report is written by `sciflow mri sample --volume`, called again")
    tree, folder = read_result(result)
    certificate = examined(tree)
    target = folder_for(folder if output is None else output)
    written = [*write_images(tree["images"], target), *write_picture(tree, target, **_known(folder))]
    for file in [*written, certificate.write(target / "certificate.json")]:
        click.echo(file)
    return exit_code(certificate, int(tree.attrs.get("out_of_distribution", -1)) == 1, require, force, str(result))


def read_result(result: Path) -> tuple[xr.DataTree, Path]:
    """The tree of a result, given its folder or its posterior.nc, and the folder. Raises `UserError` for anything else."""
    path = result / DRAWS if result.is_dir() else result
    if not path.is_file():
        raise UserError(f"{result}: no result: there is no {DRAWS}; `sciflow mri sample` writes one")
    tree = read_draws(path)
    if "images" not in tree.children or "acceleration" not in tree.attrs:
        raise UserError(f"{path}: draws, but not of an image: `sciflow mri sample` writes those")
    return tree, path.parent


def exit_code(certificate: Certificate, flagged: bool, require: str | None, force: bool, label: str) -> int:
    """0, or 3 for a scan out of distribution (without `force`) and for a verdict that is not as good as `require`."""
    click.echo(f"{label}: {certificate.verdict}")
    for text in certificate.reasons:
        click.echo(f"- {text}")
    code = 0
    if flagged:
        how = "kept by --force" if force else "exit code 3; --force overrides"
        click.echo(f"sciflow: {label}: out of the distribution of the prior, the picture carries a warning ({how})", err=True)
        code = 0 if force else 3
    if require is not None and certificate.verdict not in _ENOUGH[require]:
        click.echo(f"sciflow: {label}: required is {require!r}, the verdict is {certificate.verdict!r}", err=True)
        code = 3
    return code


def _known(folder: Path) -> dict[str, Any]:
    """What an evaluation found, if there was one."""
    import nibabel

    if not (folder / EVALUATION).is_file() or not (folder / TRUTH).is_file():
        return {}
    try:
        found = json.loads((folder / EVALUATION).read_text(encoding="utf-8"))
        image: Any = nibabel.load(folder / TRUTH)
        return {"evaluation": found["figures"], "shown": found["shown"], "truth": np.asarray(image.dataobj).T[0]}
    except Exception as error:  # nibabel, gzip and json each raise their own
        text = " ".join(str(error).split())[:120]
        raise UserError(f"{folder}: its evaluation is damaged ({text}): remove {EVALUATION}, or evaluate again") from None
