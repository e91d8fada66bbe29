"""Noise and coil maps from unpaired populations: by flow matching, by covariances, and as a single scan estimates them.

    python benchmarks/mri_calibration.py [--cache FOLDER] [--table]

Measured: simulated scans of slices of a person whom the images are not of (ch2), all by one array of coils with one noise.
Clean: training images of two others (S1_raw, otsu). The nominal maps are the array's times exp of a random polynomial of second
order per coil ("smooth"), the array's own ("none"), or what ESPIRiT makes of the calibration lines of one scan ("ESPIRiT": a
mismatch that is no polynomial). Every cell is kept in the cache, so that a run goes on where it was stopped; each takes about
half a minute of one core. Writes mri_calibration.md. SCIFLOW_DATA must be set.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import os
import statistics
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sciflow_mri.data import make_scan, read_volume
from sciflow_mri.model.calibration import CoilModel, calibrate
from sciflow_mri.model.simulated import coil_maps
from sciflow_mri.model.training_images import training_images
from sciflow_mri.physics.fourier import to_kspace
from sciflow_mri.physics.maps import sensitivity_maps
from sciflow_mri.physics.masks import calibration_block, line_mask
from sciflow_mri.posterior.acquisition import acquire
from timing import machine
from torch import Tensor

from sciflow.errors import UserError
from sciflow.files import replacing

SIZE, COILS, LINES, SCANS, IMAGES, SINGLE, RESAMPLES, SEEDS = 32, 4, 8, 100, 200, 6, 4, (0, 1)
STRENGTH = 0.15  # standard deviation of a polynomial's coefficients, real and imaginary
CASES = (("smooth", 0.03), ("smooth", 0.01), ("ESPIRiT", 0.03), ("smooth", 0.1), ("none", 0.03))
ALONE = ("smooth", 0.03)  # the only case of the last run, to save time
RUNS: dict[str, dict[str, Any]] = {
    "moments": {"method": "moments", "resamples": RESAMPLES},
    "flow": {"method": "flow", "resamples": 0},
    "affine flow": {"method": "flow", "resamples": 0, "hidden": ()},
    "networks alone": {"method": "flow", "resamples": 0, "affine": False},
}
NAMES = ("one scan", *RUNS)
_log = logging.getLogger("mri_calibration")


def volumes(*people: str) -> list[Any]:
    folder = os.environ.get("SCIFLOW_DATA")
    if not folder:
        raise UserError("set SCIFLOW_DATA to the folder that has mri/ch2.nii.gz")
    return [read_volume(Path(folder) / "mri" / f"{person}.nii.gz").values for person in people]


@cache
def clean() -> Tensor:
    return training_images(volumes("S1_raw", "otsu"), IMAGES, SIZE, seed=1)


def map_error(maps: Tensor, truth: Tensor, support: Tensor) -> float:
    """|S - g S'| / |S| over the support, with the best common complex factor g of every pixel."""
    factor = (maps.conj() * truth).sum(0) / maps.abs().square().sum(0)
    return float(((truth - factor * maps) * support).norm() / (truth * support).norm())


def missing(kind: str, sigma: float, found: dict[str, list[float]]) -> list[str]:
    """The methods that a cell lacks."""
    wanted = [name for name in RUNS if name != "networks alone" or (kind, sigma) == ALONE]
    return [name for name in ("one scan", *wanted) if name not in found]


def cell(kind: str, sigma: float, seed: int, found: dict[str, list[float]]) -> dict[str, list[float]]:
    """method -> [sigma, its stated error, error of the maps, CPU s, misfit]; "nominal" -> error of the maps before.

    What is in `found` already stays.
    """
    rng = np.random.default_rng((seed, 17))
    images = training_images(volumes("ch2"), SCANS, SIZE, seed=100 + seed)
    array = torch.from_numpy(coil_maps(COILS, SIZE, rng)).to(torch.complex128)
    block = calibration_block(SIZE, LINES)
    truth = array
    if kind == "smooth":
        bend = CoilModel(array, block)
        theta = bend.start(sigma)
        theta[1 + bend.terms :] = STRENGTH * torch.from_numpy(rng.normal(size=bend.count - 1 - bend.terms))
        truth = bend.maps_at(theta)
    x = torch.complex(images[:, 0], images[:, 1]).to(torch.complex128)
    white = torch.from_numpy(rng.normal(size=(2, SCANS, COILS, SIZE, SIZE)))
    scans = to_kspace(truth * x.unsqueeze(1)) + sigma * torch.complex(white[0], white[1])
    support = x.abs().square().mean(0).sqrt() > 0.2
    nominal = sensitivity_maps(scans[0], block)[0] if kind == "ESPIRiT" else array
    model = CoilModel(nominal, block)
    found = {"nominal": [map_error(nominal, truth, support)], **found}
    for name in missing(kind, sigma, found):
        if name == "one scan":
            found[name] = single(scans, truth, support)
            continue
        start = time.process_time()
        result = calibrate(model, scans, clean(), seed=seed, **RUNS[name])
        seconds = time.process_time() - start
        found[name] = [result.sigma, result.sigma_error, map_error(result.maps, truth, support), seconds, result.misfit]
        _log.info("%s %s %d: %s %s %s", kind, sigma, seed, name, [f"{value:.4g}" for value in found[name]], result.notes)
    return found


def single(scans: Tensor, truth: Tensor, support: Tensor) -> list[float]:
    """What reconstructions use now: each of a few scans at R = 2 for itself; medians, and the spread of sigma between scans."""
    sigmas, errors, start = [], [], time.process_time()
    for number in range(SINGLE):
        mask = line_mask(SIZE, 2, LINES, seed=number)
        kspace = torch.where(mask.unsqueeze(1), scans[number], 0).to(torch.complex64)
        scan = make_scan(kspace.numpy()[None], mask=mask.numpy(), attrs={"source": f"scan {number}"})
        seen = acquire(scan)
        sigmas.append(float(seen.sigma.mean()))
        errors.append(map_error(seen.maps.to(torch.complex128), truth, support))
    seconds = (time.process_time() - start) / SINGLE
    return [statistics.median(sigmas), statistics.stdev(sigmas), statistics.median(errors), seconds]


def cells(folder: Path, compute: bool) -> Iterator[Any]:
    for seed, (kind, sigma) in itertools.product(SEEDS, CASES):
        path = folder / f"{kind}-{sigma}-{seed}.json"
        found = json.loads(path.read_text()) if path.is_file() else {}
        if compute and missing(kind, sigma, found):
            found = cell(kind, sigma, seed, found)
            with replacing(path) as beside:
                beside.write_text(json.dumps(found))
        if found:
            yield kind, sigma, found


def table(found: list[Any]) -> list[str]:
    def over(case: tuple[str, float], name: str, column: int) -> list[float]:
        return [each[name][column] for kind, sigma, each in found if (kind, sigma) == case and name in each]

    def shown(values: list[float], digits: int) -> str:
        return (
            "" if not values else f"{statistics.mean(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"
        )

    cases = [case for case in CASES if over(case, "nominal", 0)]
    head = [
        "",
        "## Noise level",
        "",
        f"| maps | true sigma | {' | '.join(NAMES)} | stated error (moments) |",
        "|---" * (4 + len(RUNS)) + "|",
    ]
    lines = list(head)
    for case in cases:
        row = " | ".join(shown(over(case, name, 0), 4) for name in NAMES)
        lines.append(f"| {case[0]} | {case[1]} | {row} | {statistics.mean(over(case, 'moments', 1)):.4f} |")
    lines += ["", "## Maps, % of their norm on the support, up to a common factor", ""]
    lines += [f"| maps | true sigma | seeds | nominal | {' | '.join(NAMES)} |", "|---" * (5 + len(RUNS)) + "|"]
    for case in cases:
        columns = [over(case, "nominal", 0), *(over(case, name, 2) for name in NAMES)]
        row = " | ".join(shown([100 * value for value in column], 2) for column in columns)
        lines.append(f"| {case[0]} | {case[1]} | {len(columns[0])} | {row} |")
    lines += ["", "## Cost and misfit (mean of all cells)", "", "| | CPU s | misfit |", "|---|---|---|"]
    for name in NAMES:
        seconds = statistics.mean(each[name][3] for *_, each in found if name in each)
        misfit = [each[name][4] for *_, each in found if name in each] if name in RUNS else []
        lines.append(
            f"| {name} | {seconds:.2f} | {statistics.mean(misfit):.2f} |" if misfit else f"| {name} | {seconds:.2f} | |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path("calibration-cache"))
    parser.add_argument("--table", action="store_true", help="of what is in the cache, without computing")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    found = list(cells(arguments.cache, not arguments.table))
    lines = [
        "# Noise and coil maps without ground truth",
        "",
        f"{machine()}. One thread, {SIZE} x {SIZE}, {COILS} coils, {LINES} calibration lines (x {2 * LINES} columns), {SCANS} "
        f"scans of one person, {IMAGES} images of two others, one seed or more (coils, mismatch, slices, "
        "noise all drawn anew): mean (least to largest). sigma is of real and imaginary part each, in units of the image's "
        f"95th percentile. 'one scan': `acquire` of scans at R = 2, median of {SINGLE}, CPU s each. 'moments': covariances, "
        f"with {RESAMPLES} resamples in its time and stated error. 'flow': the flows with their affine part in closed form, "
        "started at 'moments'; 'affine flow': that part alone, of covariances only; 'networks alone': without it.",
        *table(found),
        "",
    ]
    with replacing(Path(__file__).with_suffix(".md")) as beside:
        beside.write_text("\n".join(lines))


if __name__ == "__main__":
    main()
