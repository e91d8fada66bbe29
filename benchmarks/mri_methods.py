"""One table of all methods: prior and Langevin, null-space flows, the amortised flow, and the best of four reconstructions.

    python benchmarks/mri_methods.py [--prior FOLDER|64] [--affine FOLDER] [--spline FOLDER] [--amortised FOLDER]
        [--person ch2] [--slices 8] [--draws 16] [--baselines] [--spread S1_raw otsu] [--table]

FOLDER: models of `sciflow mri train` (`--kind prior | null-space | amortised`, with `--hold-out ch2`), none of which has seen
the person. Scans are those of mri_people.py at R = 4: 64 x 64, 16 of 64 lines, 8 in the centre, 8 coils, 0.5 to 2 % noise;
maps, noise and scale are estimated from the measured lines alone. What is named is measured and kept in mri_methods.json as
soon as it is there; the table mri_methods.md is of everything that is kept. `--spread` chooses the spread of the consistency
step of null-space flows on simulated scans of people they were trained on, and saves it in their folders. Some minutes of one
core. SCIFLOW_DATA must be set.

The rows (b) are of `sciflow mri train S1_raw.nii.gz otsu.nii.gz ch2.nii.gz --hold-out ch2 --kind null-space --coupling affine
--images 1600 --validation-images 64 --epochs 5` and of the same with spline: the epoch (the last one) was chosen on images of
ch2. The rows (c) are of weights that are not kept: `--kind amortised --start` makes such.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_baselines import FOUR
from mri_explosions import amortised_explosions, null_space_explosions
from mri_out_of_distribution import volume
from mri_people import Scan, baselines, covered, scans
from sciflow_mri.metrics import psnr, ssim
from sciflow_mri.model.shipped import model_folder
from sciflow_mri.posterior.coverage import LEVELS
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.joint import refine_maps
from sciflow_mri.posterior.learned import draw_pairs
from sciflow_mri.posterior.simulations import simulated_acquisitions
from sciflow_mri.posterior.spread import choose_spread
from timing import machine

import sciflow
from sciflow.files import replacing
from sciflow.persistence import fingerprint, metadata

CACHE = Path(__file__).with_suffix(".json")
RATE, PULL = 4, 0.1  # acceleration; the consistency step of the amortised flow, in units of the prior
SPREAD_SCANS = 6  # of each person
_log = logging.getLogger("mri_methods")


def judged(cases: Sequence[Scan], model: Any, sampler: Any, draws: int) -> list[dict[str, Any]]:
    """Mean, coverage and time of the draws of each scan."""
    found = []
    for number, case in enumerate(cases):
        with torch.no_grad():
            acquisition = refine_maps(case.acquisition, model, seed=number)
            began = time.process_time()
            result = draw_pairs(acquisition, model, draws, sampler, seed=number)
        seconds = (time.process_time() - began) / draws
        mean = result.rows.mean(0).norm(dim=0).double().numpy()
        level = torch.from_numpy(case.truth[case.support] / case.acquisition.scale)
        inside = result.rows.norm(dim=1).double()[:, torch.from_numpy(case.support)]
        found.append({
            "psnr": psnr(mean, case.truth, case.support), "ssim": ssim(mean, case.truth, case.support),
            "coverage": covered(inside, level),
            "seconds": seconds, "residual": float(result.traces["residual"].mean()),
            "exploded": result.statistics.get("exploded", 0.0), "largest": float(result.rows.norm(dim=1).max()),
        })  # fmt: skip
        _log.info("  scan %d: %.2f dB, %.3f s a draw", number, found[-1]["psnr"], seconds)
    return found


def spread(folder: Path, flow: Any, people: Sequence[str]) -> None:
    """Choose the spread of a null-space flow on simulated scans of these people, and save it."""
    lines = flow.image_shape[1] - flow.event_shape[1]
    simulated = [
        scan
        for person in people
        for scan in simulated_acquisitions(
            volume(person), SPREAD_SCANS, flow.image_shape[1], seed=7, coils=(8,), calibration=8,
            accelerations=(flow.image_shape[1] / lines,) * 2, noise=(0.005, 0.02),
        )
    ]  # fmt: skip
    best = choose_spread(flow, simulated, draws=16)
    pairs = ", ".join(f"{r:g}: {score:.5f}" for r, score in zip(best.spreads, best.scores, strict=True))
    _log.info("%s: spread %g (%s)", folder, best.spread, pairs)
    record = {**metadata(folder), "spread": str(best.spread), "spread chosen on": list(people), "scores of the spreads": pairs}
    sciflow.save(flow, folder, readme="A null-space flow, its spread chosen by benchmarks/mri_methods.py.", metadata=record)


def table(kept: dict[str, Any]) -> str:
    tuned = kept.get("baselines") or {}
    best_name = max(FOUR, key=lambda method: float(np.mean(tuned[method]["psnr"]))) if tuned else ""
    best: dict[str, Any] = tuned.get(best_name, {})
    count, draws = kept["slices"], kept["draws"]
    lines = [
        "# Methods for one accelerated scan",
        "",
        f"{machine()}, sciflow {sciflow.__version__}. N = {count} simulated scans of {kept['person']}, whom no model has seen, "
        f"at 64 x 64 and R = {RATE} (16 lines, 8 of them in the centre), 8 coils, 0.5 to 2 % noise; {draws} draws each. "
        "PSNR and SSIM of the mean of the draws on the filled head, ± standard deviation over scans; gain over the best of the "
        f"four tuned reconstructions ({best_name}), paired per scan, ± standard error. "
        "Coverage of central 50/80/90 % intervals of the magnitude, corrected for the number of draws (of 16 the widest hold "
        ".88); its error is the mean distance from what is stated, ± standard error over scans. One thread; seconds include "
        "the estimate of the condition, shared by the draws, but not the refinement of the maps for a prior (14 draws' time). "
        "Exploded: share of draws of the scans as they are, and of those given a condition that is five "
        "times as bright / has noise of 1 / has its k-space lines permuted; in brackets the largest value over the largest of "
        "the training (null-space) or of the draws of the scans as they are (amortised). Above 2 is exploded; an amortised "
        "draw that follows a condition five times as bright is among them. A prior sees no condition. Density: "
        "exact, of the draw before its consistency step.",
        "",
        "| method | PSNR, dB | SSIM | gain, dB | coverage | its error | residual | CPU s a draw | density | exploded |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lead = np.array(best.get("psnr", [np.nan] * count))[:count]
    for name, entry in kept.get("methods", {}).items():
        rows = entry["rows"]
        value = np.array([row["psnr"] for row in rows])
        similar = np.array([row["ssim"] for row in rows])
        gain = value - lead[: len(value)]
        shares = np.array([row["coverage"] for row in rows])
        error = np.abs(shares.mean(0) - LEVELS).mean()
        scatter = shares.std(0, ddof=1).mean() / len(rows) ** 0.5
        seconds = np.mean([row["seconds"] for row in rows])
        lines.append(
            f"| {name} | {value.mean():.2f} ± {value.std(ddof=1):.2f} | {similar.mean():.3f} ± {similar.std(ddof=1):.3f} | "
            f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f} | "
            f"{'/'.join(f'{c:.2f}' for c in shares.mean(0))} | "
            f"{error:.3f} ± {scatter:.3f} | {np.mean([row['residual'] for row in rows]):.2f} | {seconds:.4f} | "
            f"{'yes' if entry['density'] else 'no'} | {_exploded(entry)} |"
        )
    if best:
        value, similar = np.array(best["psnr"]), np.array(best["ssim"])
        lines.append(
            f"| {best_name}, lambda {best['lambda']:g}, tuned on the truth "
            f"| {value.mean():.2f} ± {value.std(ddof=1):.2f} | {similar.mean():.3f} ± "
            f"{similar.std(ddof=1):.3f} | 0 | – | – | – | {best['seconds']:.2f} an image | no | – |"
        )
    notes = [f"- {name}: {entry['note']}" for name, entry in kept.get("methods", {}).items() if entry.get("note")]
    return "\n".join([*lines, "", *notes]) + "\n"


def _exploded(entry: dict[str, Any]) -> str:
    found = entry.get("explosions")
    if found is None:
        return "–"
    own = np.mean([row["exploded"] for row in entry["rows"]])
    return f"{own:.2f}; " + " / ".join(
        f"{found[name]['share']:.2f} ({found[name]['reach']:.3g})" for name in ("x 5", "noise of 1", "lines permuted")
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name in ("prior", "affine", "spline", "amortised"):
        parser.add_argument(f"--{name}", type=str)
    parser.add_argument("--person", default="ch2")
    parser.add_argument("--slices", type=int, default=8)
    parser.add_argument("--draws", type=int, default=16)
    parser.add_argument("--baselines", action="store_true", help="the four reconstructions, tuned")
    parser.add_argument(
        "--spread", nargs="+", metavar="PERSON", help="choose the spread of the null-space flows on these people"
    )
    parser.add_argument("--cache", type=Path, default=CACHE)
    parser.add_argument("--table", action="store_true", help="only write the table of what is kept")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    head = {"person": given.person, "slices": given.slices, "draws": given.draws}
    kept: dict[str, Any] = json.loads(given.cache.read_text()) if given.cache.is_file() else {}
    if {name: kept.get(name) for name in head} != head:
        kept = {**head, "baselines": {}, "methods": {}}

    def write() -> None:
        with replacing(given.cache) as beside:
            beside.write_text(json.dumps(kept, indent=1) + "\n")

    if not given.table:
        cases = list(scans(given.person, RATE, given.slices))
        if given.prior is not None:
            flow = sciflow.load(model_folder(int(given.prior)) if given.prior.isdigit() else given.prior)
            rows = judged(cases, flow, default_sampler(flow, states=0), given.draws)
            kept["methods"]["(a) prior, annealed Langevin"] = {"rows": rows, "density": False, "note": _note(given.prior, flow)}
            write()
        for coupling in ("affine", "spline"):
            if (folder := getattr(given, coupling)) is None:
                continue
            flow = sciflow.load(folder, trust=("sciflow_mri",))
            if given.spread:
                spread(Path(folder), flow, given.spread)
            rows = judged(cases, flow, default_sampler(flow), given.draws)
            found = null_space_explosions(cases, flow, given.draws)
            note = f"{_note(folder, flow)}, spread {float(flow.spread):g}, inverse within {found['inverse']['error']:.1e}"
            kept["methods"][f"(b) null-space flow, {coupling}"] = {
                "rows": rows, "density": True, "explosions": found, "note": note,
            }  # fmt: skip
            write()
        if given.amortised is not None:
            flow = sciflow.load(given.amortised, trust=("sciflow_mri",))
            found = amortised_explosions(cases, flow, given.draws)
            for pull in (None, PULL):
                rows = judged(cases, flow, default_sampler(flow, consistency=pull), given.draws)
                name = "(c) amortised flow" + ("" if pull is None else f", consistency step r = {pull:g}")
                note = _note(given.amortised, flow)
                kept["methods"][name] = {"rows": rows, "density": False, "explosions": found, "note": note}
                write()
        if given.baselines:
            kept["baselines"] = baselines(cases, FOUR)
            write()
    with replacing(given.cache.with_suffix(".md")) as beside:
        beside.write_text(table(kept))


def _note(folder: str, flow: Any) -> str:
    path = model_folder(int(folder)) if folder.isdigit() else Path(folder)
    known = metadata(path)
    words = [f"{sum(p.numel() for p in flow.parameters()):,} weights", f"fingerprint {fingerprint(flow)[:12]}"]
    words += [f"{name} {known[name]}" for name in ("processor minutes", "minutes", "steps") if name in known]
    return ", ".join(words)


if __name__ == "__main__":
    main()
