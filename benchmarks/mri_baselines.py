"""The four reconstructions that a posterior mean has to beat, on a real scan: zero-filled, CG-SENSE, L1-wavelet, TV.

    python benchmarks/mri_baselines.py [--cases "64 R4" ...] [--table]

Not a timing. The last three are sigpy's, with maps from the calibration lines alone. Their weights lambda are tuned on the
reference, one for all five masks of a case: generous to them. sigpy's default for TV (100 primal-dual iterations) is far from
its minimum, so that TV stands there three times: by default, after 400 iterations, and near the minimum (by ADMM). Every number
is kept in mri_baselines.json as soon as it is there, so that a run goes on where it was stopped, and so that other benchmarks
compare with them mask by mask (`baseline`). Writes mri_baselines.md. 15 minutes of one core in all. SCIFLOW_DATA must be set.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import logging
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_cases import CASES, SEEDS, Case, Reference, normalised, reference, scan, scan_sha256
from numpy.typing import NDArray
from sciflow_mri.metrics import psnr, ssim
from sciflow_mri.physics import sensitivity_maps
from timing import machine

from sciflow.files import replacing

CACHE = Path(__file__).with_suffix(".json")
HALF_DECADES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
GRIDS = {
    "zero-filled": (0.0,),
    "CG-SENSE": HALF_DECADES,
    "L1-wavelet": HALF_DECADES[:7],
    "TV": HALF_DECADES[:6],
    "TV, 400 iterations": HALF_DECADES[:6],
    "TV, minimum": HALF_DECADES[1:6],
}
SETTINGS: dict[str, dict[str, Any]] = {
    "CG-SENSE": {"max_iter": 100},
    "L1-wavelet": {"max_iter": 100},
    "TV": {"max_iter": 100},
    "TV, 400 iterations": {"max_iter": 400},
    "TV, minimum": {"solver": "ADMM", "rho": 0.1, "max_iter": 60, "max_cg_iter": 10},
}
FOUR = ("zero-filled", "CG-SENSE", "L1-wavelet", "TV")  # as sigpy does them by default

_log = logging.getLogger("mri_baselines")
Numbers = dict[str, dict[str, dict[str, dict[str, list[float]]]]]  # case, method, lambda, {psnr, ssim} of the masks


def reconstruct(method: str, kspace: NDArray[Any], maps: NDArray[Any], mask: NDArray[Any], weight: float) -> NDArray[Any]:
    """The complex image (y, x) of normalised k-space (coil, ky, kx), zero where nothing is measured."""
    from sigpy.mri import app, linop

    weights = np.broadcast_to(mask[:, None], kspace.shape[1:]).astype(kspace.real.dtype)
    if method == "zero-filled":
        return linop.Sense(maps, weights=weights).H(kspace)
    kind = {"CG-SENSE": app.SenseRecon, "L1-wavelet": app.L1WaveletRecon}.get(method, app.TotalVariationRecon)
    return kind(kspace, maps, lamda=weight, weights=weights, show_pbar=False, **SETTINGS[method]).run()


def evaluate(case: Case, method: str, weight: float, prepared: list[Any], truth: Reference) -> dict[str, list[float]]:
    found = [reconstruct(method, kspace, maps, mask, weight) for kspace, maps, mask in prepared]
    return {
        "psnr": [round(psnr(image, truth.truth, truth.support), 4) for image in found],
        "ssim": [round(ssim(image, truth.truth, truth.support), 5) for image in found],
    }


def prepare(case: Case) -> tuple[list[Any], Reference]:
    """Normalised measured k-space, maps and mask for each mask; the reference."""
    kspace = scan(case.size)
    maps, _ = sensitivity_maps(kspace, case.block)  # of the calibration lines, which all masks share
    prepared = []
    for seed in SEEDS:
        mask = case.mask(seed)
        prepared.append((normalised(kspace, maps, mask)[0].numpy(), maps.numpy(), mask.numpy()))
    return prepared, reference(kspace)


def fingerprint() -> dict[str, Any]:
    """What the numbers depend on: they are computed again when it changes."""
    masks = {case.name: [case.mask(seed).int().tolist() for seed in SEEDS] for case in CASES}
    maps = [float(sensitivity_maps(scan(case.size), case.block)[0].abs().sum()) for case in CASES]
    return {
        "scan_sha256": scan_sha256(),
        "masks_sha256": hashlib.sha256(json.dumps(masks).encode()).hexdigest(),
        "maps": [f"{value:.4g}" for value in maps],
        "seeds": list(SEEDS),
        "settings": SETTINGS,
        "sigpy": version("sigpy"),
    }


def load() -> Numbers:
    """The kept numbers; none if what they depend on has changed."""
    if not CACHE.is_file():
        return {}
    kept = json.loads(CACHE.read_text())
    return kept["numbers"] if kept["fingerprint"] == fingerprint() else {}


def tuned(numbers: Numbers, case: str, method: str) -> tuple[float, dict[str, list[float]]]:
    """The lambda of the best mean PSNR over the masks, and its figures."""
    rows = numbers[case][method]
    best = max(rows, key=lambda weight: float(np.mean(rows[weight]["psnr"])))
    return float(best), rows[best]


def baseline(
    case: str, numbers: Numbers | None = None, methods: Iterable[str] = tuple(GRIDS)
) -> tuple[str, dict[str, list[float]]]:
    """The tuned method of the best mean PSNR in a case, with its `psnr` and `ssim` for each mask of `SEEDS`.

    Of all methods, or of some: `FOUR` as sigpy does them by default.
    """
    numbers = load() if numbers is None else numbers
    found = {method: tuned(numbers, case, method)[1] for method in methods}
    method = max(found, key=lambda name: float(np.mean(found[name]["psnr"])))
    return method, found[method]


def table(numbers: Numbers) -> str:
    lines = [
        "# Reconstructions of a real scan that a posterior mean has to beat",
        "",
        f"{machine()}, sigpy {version('sigpy')}. `full.cfl`, a fully sampled 8-coil brain, k-space cropped to the size; "
        f"exactly N/R lines, {len(SEEDS)} masks; maps from the calibration lines alone. Magnitude, one least-squares scale on "
        "the support (eigenvalue of the full-data maps > .8), PSNR with the maximum of the truth over it, SSIM 7 x 7 averaged "
        "over it: means over masks ± their standard deviation. Lambda (in units where the 95th percentile of the zero-filled "
        "image is 1) is tuned on the reference, one for all masks of a case. The best of each case is bold. TV by default is "
        "far from its minimum, so that two columns more have it after 400 iterations and near the minimum.",
        "",
        "| case | " + " | ".join(GRIDS) + " |",
        "|---|" + "---|" * len(GRIDS),
    ]
    cases = [case.name for case in CASES if set(numbers.get(case.name, {})) == set(GRIDS)]
    for case in cases:
        best, _ = baseline(case, numbers)
        cells = []
        for method in GRIDS:
            weight, rows = tuned(numbers, case, method)
            text = f"{np.mean(rows['psnr']):.2f} ± {np.std(rows['psnr'], ddof=1):.2f} / {np.mean(rows['ssim']):.3f}"
            text = f"**{text}**" if method == best else text
            cells.append(text + (f" ({weight:g})" if method != "zero-filled" else ""))
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    lines += ["", "PSNR mask by mask (seeds " + ", ".join(map(str, SEEDS)) + "), lambda of the case:", ""]
    lines += ["| case | method | " + " | ".join(map(str, SEEDS)) + " |", "|---|---|" + "---|" * len(SEEDS)]
    for case in cases:
        for method in GRIDS:
            values = " | ".join(f"{value:.2f}" for value in tuned(numbers, case, method)[1]["psnr"])
            lines.append(f"| {case} | {method} | {values} |")
        every = [rows["psnr"] for found in numbers[case].values() for rows in found.values()]
        lines.append(
            f"| {case} | the best of all methods and lambdas | " + " | ".join(f"{v:.2f}" for v in np.max(every, 0)) + " |"
        )
    lines += [
        "",
        "Paired differences, a method minus the best of its case, mean ± standard error over masks:",
        "",
        "| case | " + " | ".join(GRIDS) + " |",
        "|---|" + "---|" * len(GRIDS),
    ]
    for case in cases:
        lead = np.array(baseline(case, numbers)[1]["psnr"])
        gaps = [np.array(tuned(numbers, case, method)[1]["psnr"]) - lead for method in GRIDS]
        cells = [f"{gap.mean():.2f} ± {gap.std(ddof=1) / len(gap) ** 0.5:.2f}" if gap.any() else "0" for gap in gaps]
        lines.append(f"| {case} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cases", nargs="+", choices=[case.name for case in CASES], default=[case.name for case in CASES])
    parser.add_argument("--table", action="store_true", help="only write the table of the numbers that are kept")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    numbers, marks = load(), fingerprint()
    for case in CASES:
        if arguments.table or case.name not in arguments.cases:
            continue
        prepared, truth = prepare(case)
        for method, grid in GRIDS.items():
            rows = numbers.setdefault(case.name, {}).setdefault(method, {})
            for weight in grid:
                if f"{weight:g}" in rows:
                    continue
                rows[f"{weight:g}"] = evaluate(case, method, weight, prepared, truth)
                _log.info("%s %s %g: %.2f dB", case.name, method, weight, np.mean(rows[f"{weight:g}"]["psnr"]))
                with replacing(CACHE) as beside:
                    beside.write_text(json.dumps({"fingerprint": marks, "numbers": numbers}, indent=1) + "\n")
    with replacing(CACHE.with_suffix(".md")) as beside:
        beside.write_text(table(numbers))


if __name__ == "__main__":
    main()
