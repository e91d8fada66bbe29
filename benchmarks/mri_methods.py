"""One table of all methods: prior and Langevin, null-space flows, the amortised flow, and the best of four reconstructions.

    python benchmarks/mri_methods.py [--prior FOLDER|64] [--affine FOLDER] [--spline FOLDER] [--amortised FOLDER]
        [--person ch2] [--slices 8] [--draws 16] [--baselines] [--spread S1_raw otsu] [--table]

FOLDER: models of `sciflow mri train` (`--kind prior | null-space | amortised`, with `--hold-out ch2`), none of which has seen
the person. Scans are those of mri_people.py at R = 4: 64 x 64, 16 of 64 lines, 8 in the centre, 8 coils, 0.5 to 2 % noise;
maps, noise and scale are estimated from the measured lines alone. What is named is measured and kept in mri_methods.json as
soon as it is there; the table mri_methods.md is of everything that is kept. `--spread` chooses the spread of the consistency
step of null-space flows on simulated scans of people they were trained on, and saves it in their folders. Some minutes of one
core.
SCIFLOW_DATA must be set.
"""

from __future__ import annotations

import argparse
import json
import logging
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_baselines import FOUR, GRIDS, reconstruct
from mri_cases import normalised
from mri_out_of_distribution import volume
from mri_people import Scan, scans
from sciflow_mri.metrics import psnr, ssim
from sciflow_mri.model.amortised_draws import step_times
from sciflow_mri.model.conditions import condition_of
from sciflow_mri.model.null_space import LineCoordinates, draw_null_space
from sciflow_mri.model.null_space.training import seen_by_flow
from sciflow_mri.model.shipped import model_folder
from sciflow_mri.physics.fourier import to_image, to_kspace
from sciflow_mri.posterior.drawing import default_sampler
from sciflow_mri.posterior.learned import draw_pairs
from sciflow_mri.posterior.simulations import simulated_acquisitions
from sciflow_mri.posterior.spread import choose_spread
from timing import machine
from torch import Tensor

import sciflow
from sciflow.files import replacing
from sciflow.persistence import fingerprint, metadata
from sciflow.transport import FixedStep

CACHE = Path(__file__).with_suffix(".json")
LEVELS = (0.5, 0.8, 0.9)
RATE, PULL = 4, 0.1  # acceleration; the consistency step of the amortised flow, in units of the prior
SPREAD_SCANS = 6  # of each person
_log = logging.getLogger("mri_methods")


def corruptions(image: Tensor, seed: int) -> dict[str, Tensor]:
    """Conditions (2, y, x) as no scan makes them: five times as bright; with white noise of 1; with its k-space lines mixed."""
    generator = torch.Generator().manual_seed(seed)
    lines = to_kspace(torch.complex(image[0], image[1]))[torch.randperm(image.shape[1], generator=generator)]
    mixed = to_image(lines)
    return {
        "x 5": 5 * image,
        "noise of 1": image + torch.randn(image.shape, generator=generator),
        "lines permuted": torch.stack((mixed.real, mixed.imag)),
    }


def judged(cases: Sequence[Scan], model: Any, sampler: Any, draws: int) -> list[dict[str, Any]]:
    """Mean, coverage and time of the draws of each scan."""
    found = []
    for number, case in enumerate(cases):
        began = time.process_time()
        with torch.no_grad():
            result = draw_pairs(case.acquisition, model, draws, sampler, seed=number)
        seconds = (time.process_time() - began) / draws
        mean = result.rows.mean(0).norm(dim=0).double().numpy()
        level = torch.from_numpy(case.truth[case.support] / case.acquisition.scale)
        inside = result.rows.norm(dim=1).double()[:, torch.from_numpy(case.support)]
        covered = []
        for q in LEVELS:
            low, high = (inside.quantile(p, dim=0) for p in ((1 - q) / 2, (1 + q) / 2))
            covered.append(float(((level >= low) & (level <= high)).double().mean()))
        found.append({
            "psnr": psnr(mean, case.truth, case.support), "ssim": ssim(mean, case.truth, case.support), "coverage": covered,
            "seconds": seconds, "residual": float(result.traces["residual"].mean()),
            "exploded": result.statistics.get("exploded", 0.0), "largest": float(result.rows.norm(dim=1).max()),
        })  # fmt: skip
        _log.info("  scan %d: %.2f dB, %.3f s a draw", number, found[-1]["psnr"], seconds)
    return found


def baselines(cases: Sequence[Scan], keep: Callable[[str, Any], None], kept: dict[str, Any]) -> None:
    """Of each of the four at its best lambda, one for all scans, tuned on the truth."""
    inputs = [(normalised(a.kspace, a.maps, a.mask)[0].numpy(), a.maps.numpy(), a.mask.numpy()) for a, _, _ in cases]
    for method in FOUR:
        rows = kept.get(method, {})
        for weight in GRIDS[method]:
            if f"{weight:g}" in rows:
                continue
            began = time.process_time()
            images = [reconstruct(method, *given, weight) for given in inputs]
            rows[f"{weight:g}"] = {
                "psnr": [psnr(image, case.truth, case.support) for image, case in zip(images, cases, strict=True)],
                "ssim": [ssim(image, case.truth, case.support) for image, case in zip(images, cases, strict=True)],
                "seconds": (time.process_time() - began) / len(cases),
            }
            _log.info("%s %g: %.2f dB", method, weight, np.mean(rows[f"{weight:g}"]["psnr"]))
            keep(method, rows)


def null_space_explosions(cases: Sequence[Scan], flow: Any, draws: int) -> dict[str, dict[str, float]]:
    """Share of exploded draws (`NullSpaceFlow.explosion`) and largest |w| over that of the training, of corrupted conditions;
    and how far the latent of a draw's data gives the data back, of the scans as they are."""
    shares: dict[str, list[float]] = {}
    reach: dict[str, float] = {}
    worst = 0.0
    for number, case in enumerate(cases):
        image, scalars, maps = seen_by_flow(condition_of(case.acquisition.operator, case.acquisition.y).condition)
        coordinates = LineCoordinates(case.acquisition.mask)
        for name, given in {"none": image, **corruptions(image, number)}.items():
            found = draw_null_space(flow, coordinates, given, draws, seed=number, scalars=scalars, maps=maps)
            shares.setdefault(name, []).append(float(found.explosion.exploded.double().mean()))
            reach[name] = max(reach.get(name, 0.0), float(found.explosion.ratio.nan_to_num(torch.inf).max()))
        with torch.no_grad():
            distribution = flow(coordinates.condition(image, scalars, maps))
            w = distribution.rsample((draws,))
            worst = max(worst, float((distribution.data(distribution.latent(w)) - w).abs().max()))
    result = {name: {"share": float(np.mean(values)), "reach": reach[name]} for name, values in shares.items()}
    return {**result, "inverse": {"error": worst}}


def amortised_explosions(cases: Sequence[Scan], flow: Any, draws: int) -> dict[str, dict[str, float]]:
    """The same conditions, both images corrupted alike: share of draws that are not finite or above twice the largest value of
    the draws of all scans as they are."""
    values: dict[str, list[Tensor]] = {}
    for number, case in enumerate(cases):
        condition = condition_of(case.acquisition.operator, case.acquisition.y).condition
        images = condition["images"]
        parts = [{"none": image} | corruptions(image, number) for image in (images[:2], images[2:4])]
        for name in parts[0]:
            given = {**condition, "images": torch.cat([parts[0][name], parts[1][name], images[4:]])}
            bound = flow.sampling(stepper=FixedStep(step_times(6, 0.1)))(given)
            uniform = torch.rand(draws, bound.uniforms, dtype=torch.float64, generator=torch.Generator().manual_seed(number))
            with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
                x = bound.from_uniform(uniform, density=False)[0]
            values.setdefault(name, []).append(x.float().abs().flatten(1).amax(1))
    largest = float(torch.cat(values["none"]).max())
    return {
        name: {
            "share": float((~(torch.cat(found) <= 2 * largest)).double().mean()),
            "reach": float(torch.cat(found).nan_to_num(torch.inf).max()) / largest,
        }
        for name, found in values.items()
    }  # fmt: skip


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
    best_name, best = _best(kept["baselines"]) if set(kept.get("baselines", {})) == set(FOUR) else ("", {})
    count, draws = kept["slices"], kept["draws"]
    nominal = [q * (draws - 1) / (draws + 1) for q in LEVELS]
    lines = [
        "# Methods for one accelerated scan",
        "",
        f"{machine()}, sciflow {sciflow.__version__}. N = {count} simulated scans of {kept['person']}, whom no model has seen, "
        f"at 64 x 64 and R = {RATE} (16 lines, 8 of them in the centre), 8 coils, 0.5 to 2 % noise; {draws} draws each. "
        "PSNR and SSIM of the mean of the draws on the filled head, ± standard deviation over scans; gain over the best of the "
        f"four tuned reconstructions ({best_name}), paired per scan, ± standard error. "
        "Coverage of central 50/80/90 % intervals of "
        f"the magnitude; its error is the mean distance from {'/'.join(f'{q:.2f}' for q in nominal)}, which {draws} draws of "
        "the posterior would have, ± standard error over scans. One thread; seconds include the estimate of the condition, "
        "shared by the draws. Exploded: share of draws of the scans as they are, and of those given a condition that is five "
        "times as bright / has noise of 1 / has its k-space lines permuted; in brackets the largest value over the largest of "
        "the training (null-space) or of the draws of the scans as they are (amortised). Above 2 is exploded; an amortised "
        "draw "
        "that follows a condition five times as bright is among them. A prior sees no condition. Density: "
        "exact, of the draw before its consistency step.",
        "",
        "| method | PSNR, dB | SSIM | gain, dB | coverage | its error | residual | CPU s a draw | density | exploded |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    lead = np.array(best.get("psnr", [np.nan] * count))
    for name, entry in kept.get("methods", {}).items():
        rows = entry["rows"]
        value = np.array([row["psnr"] for row in rows])
        similar = np.array([row["ssim"] for row in rows])
        gain = value - lead[: len(value)]
        covered = np.array([row["coverage"] for row in rows])
        error = np.abs(covered.mean(0) - nominal).mean()
        scatter = covered.std(0, ddof=1).mean() / len(rows) ** 0.5
        seconds = np.mean([row["seconds"] for row in rows])
        lines.append(
            f"| {name} | {value.mean():.2f} ± {value.std(ddof=1):.2f} | {similar.mean():.3f} ± {similar.std(ddof=1):.3f} | "
            f"{gain.mean():+.2f} ± {gain.std(ddof=1) / len(gain) ** 0.5:.2f} | "
            f"{'/'.join(f'{c:.2f}' for c in covered.mean(0))} | "
            f"{error:.3f} ± {scatter:.3f} | {np.mean([row['residual'] for row in rows]):.2f} | {seconds:.4f} | "
            f"{'yes' if entry['density'] else 'no'} | {_exploded(entry)} |"
        )
    if best:
        value, similar = np.array(best["psnr"]), np.array(best["ssim"])
        lines.append(
            f"| {best_name}, tuned on the truth | {value.mean():.2f} ± {value.std(ddof=1):.2f} | {similar.mean():.3f} ± "
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


def _best(rows: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    every = {(method, weight): entry for method, weights in rows.items() for weight, entry in weights.items()}
    method, weight = max(every, key=lambda name: float(np.mean(every[name]["psnr"])))
    return f"{method}, lambda {weight}", every[method, weight]


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

    def keep(method: str, rows: Any) -> None:
        kept["baselines"][method] = rows
        write()

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
                kept["methods"][name] = {
                    "rows": rows,
                    "density": False,
                    "note": _note(given.amortised, flow),
                    "explosions": found,
                }
                write()
        if given.baselines:
            baselines(cases, keep, kept["baselines"])
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
