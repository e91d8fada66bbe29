"""Does the test of the acquisition notice scans that the prior was not made for?

    python benchmarks/mri_out_of_distribution.py PRIOR [--cache FOLDER] [--people S1_raw otsu] [--unseen ch2]

Not a timing. The score is fitted to simulated scans of the people that PRIOR (a folder of `sciflow.save`) was trained on, of
random acceleration, calibration, coils and noise, its threshold the 99 % quantile of scores of each person under distances
fitted to the others. Then: scans of a person whom neither prior nor score have seen, at R4 (8 calibration lines) and R8 (4), 8
coils, noise 1 % of the peak, against the anomalies of mri_anomalies.py made of the same person. Features are kept in the cache
piece by piece, so that a run goes on where it was stopped; about 10 minutes of one core. Writes mri_out_of_distribution.md.
SCIFLOW_DATA must be set.
"""

from __future__ import annotations

import argparse
import logging
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mri_anomalies import GROUPS, KINDS, anomalous, head
from sciflow_mri.data import read_volume
from sciflow_mri.model.simulated import simulated_scan
from sciflow_mri.model.slices import normalised
from sciflow_mri.physics.masks import line_mask
from sciflow_mri.posterior.acquisition import Acquisition, acquire
from sciflow_mri.posterior.observation import Features, ObservationModel, fit_observation, observation_features
from sciflow_mri.posterior.simulations import simulated_acquisitions
from timing import machine
from torch import Tensor

import sciflow
from sciflow.errors import UserError
from sciflow.files import replacing

SIZE, CALIBRATION, SEED, PIECE = 64, {4: 8, 8: 4}, 21, 10
NOTES = (
    "Not noticed, and why: contrasts inverted inside the head are among the curves that training images are drawn with, and "
    "heads turned by 30 to 60 degrees look like oblique slices; a mask whose lines are off by one changes an image of 8 coils "
    "by little more than maps of 4 to 8 calibration lines do. A mask that is shifted as a whole only changes the phase, and is "
    "no anomaly.",
    "",
    "The threshold is that of all accelerations, coils and noise levels together, so that it is high for any one of them: the "
    "true positive rates are far below what the AUROC would allow at a threshold for one setting.",
)
_log = logging.getLogger("mri_out_of_distribution")


def volume(person: str) -> Any:
    folder = os.environ.get("SCIFLOW_DATA")
    if not folder:
        raise UserError("set SCIFLOW_DATA to the folder that has mri/ch2.nii.gz")
    return normalised(read_volume(Path(folder) / "mri" / f"{person}.nii.gz").values)


def scans(kind: str, person: Any, rate: int, start: int, count: int) -> Iterator[Acquisition]:
    """Acquisitions of a kind of `KINDS`, or "head"; number i depends on (kind, rate, i)."""
    for i in range(start, start + count):
        rng = np.random.default_rng((SEED, rate, i, KINDS.index(kind) if kind in KINDS else 99))
        mask = line_mask(SIZE, rate, CALIBRATION[rate], seed=int(rng.integers(2**31)))
        if kind == "head":
            yield acquire(simulated_scan(head(person, SIZE, rng), mask, seed=int(rng.integers(2**31)))[0])
        else:
            yield acquire(anomalous(kind, person, mask, rng, calibration=CALIBRATION[rate]))


def training(person: Any, seed: int, start: int, count: int) -> Iterator[Acquisition]:
    for scan in simulated_acquisitions(person, count, SIZE, seed=seed, start=start):
        yield scan.acquisition


def kept(name: str, make: Callable[[int, int], Iterator[Acquisition]], count: int, folder: Path, prior: Any) -> Features:
    """The features of `count` scans, in pieces of a file each, computed where there is none yet."""
    parts = []
    for start in range(0, count, PIECE):
        path = folder / f"{name.replace('/', '')}-{start}.pt"
        size = min(PIECE, count - start)
        found = Features(*torch.load(path)) if path.is_file() else None
        if found is None or len(found.given) < size:
            found = observation_features(list(make(start, size)), prior)
            with replacing(path) as beside:
                torch.save(list(found), beside)
            _log.info("%s", path.stem)
        parts.append(Features(*(part[:size] for part in found)))
    return Features.joined(parts)


def auroc(good: Tensor, bad: Tensor, seed: int = 0, rounds: int = 2000) -> tuple[float, float, float]:
    """P(bad > good), and its 95 % bootstrap interval over both sets."""
    wins = (bad.unsqueeze(1) > good).double() + 0.5 * (bad.unsqueeze(1) == good).double()
    rng = np.random.default_rng(seed)
    a, b = (torch.from_numpy(rng.integers(0, len(x), (rounds, len(x)))) for x in (bad, good))
    drawn = torch.stack([wins[i][:, j].mean() for i, j in zip(a, b, strict=True)])
    low, high = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return float(wins.mean()), low, high


def rows(model: ObservationModel, good: Features, bad: dict[str, Features]) -> list[str]:
    """Lines of the table: groups of kinds, then kinds."""
    reference, limits = model.score(good), (float(model.threshold), float(model.warning))
    scores = {kind: model.score(features) for kind, features in bad.items()}
    entries = [("**all**", torch.cat(list(scores.values())))]
    for group, kinds in GROUPS.items():
        entries.append((f"**{group}**", torch.cat([scores[kind] for kind in kinds])))
        entries += [(kind, scores[kind]) for kind in kinds]
    found = []
    for name, values in entries:
        value, low, high = auroc(reference, values)
        shares = " | ".join(f"{float((values > limit).double().mean()):.2f}" for limit in limits)
        found.append(f"| {name} | {len(values)} | {value:.3f} ({low:.3f} to {high:.3f}) | {shares} |")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("prior", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("ood-cache"))
    parser.add_argument("--people", nargs="+", default=["S1_raw", "otsu"])
    parser.add_argument("--unseen", default="ch2")
    parser.add_argument("--training", type=int, default=150, help="simulated scans of each training person")
    parser.add_argument("--heads", type=int, default=20)
    parser.add_argument("--count", type=int, default=8, help="scans of each kind and acceleration")
    parser.add_argument("--save", type=Path, help="folder for the fitted test")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(1)
    arguments.cache.mkdir(parents=True, exist_ok=True)
    prior = sciflow.load(arguments.prior)
    people = {
        name: kept(f"train-{name}", partial(training, volume(name), seed), arguments.training, arguments.cache, prior)
        for seed, name in enumerate(arguments.people, 1)
    }
    model = fit_observation(people, (SIZE, SIZE))
    if arguments.save:
        sciflow.save(model, arguments.save)
    unseen = volume(arguments.unseen)
    lines = [
        "# Scans that the prior was not made for",
        "",
        f"{machine()}. Prior `{arguments.prior.name}` (sha256 {sciflow.persistence.fingerprint(prior)[:12]}), trained on "
        f"{' and '.join(arguments.people)}; score fitted to {arguments.training} simulated scans of each of them (R 2.5 to 9, "
        "4 to 12 calibration lines, 6 to 12 coils, noise .3 to 3 % of the peak), threshold "
        f"{float(model.threshold):.2f} (99 % quantile across people), warning {float(model.warning):.2f} (95 %). "
        f"Tested on {arguments.unseen}, {SIZE} x {SIZE}, "
        f"8 coils, noise 1 %. AUROC against {arguments.heads} scans of that person, 95 % bootstrap intervals over scans (one "
        "person: that people differ is not in them); TPR: share above the threshold, and above the warning.",
    ]
    for rate in CALIBRATION:

        def of(kind: str, count: int, rate: int = rate) -> Features:
            name = f"{arguments.unseen}-R{rate}-{kind}"
            return kept(name, partial(scans, kind, unseen, rate), count, arguments.cache, prior)

        good = of("head", arguments.heads)
        bad = {kind: of(kind, arguments.count) for kind in KINDS}
        limits = (model.threshold, model.warning)
        false = [float((model.score(good) > limit).double().mean()) for limit in limits]
        lines += ["", f"## R{rate}, {CALIBRATION[rate]} calibration lines", "",
                  f"False positive rate {false[0]:.2f}, with warnings {false[1]:.2f} ({arguments.heads} scans).", "",
                  "| kind | scans | AUROC | TPR | TPR, warning |", "|---|---|---|---|---|",
                  *rows(model, good, bad)]  # fmt: skip
    text = "\n".join([*lines, "", *NOTES]) + "\n"
    with replacing(Path(__file__).with_suffix(".md")) as beside:
        beside.write_text(text)


if __name__ == "__main__":
    main()
