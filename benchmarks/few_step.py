"""One evaluation against fifty: how near one-step methods come to the flow they shorten, and what limits them.

    python benchmarks/few_step.py [--seeds 0 1 2] [--steps 10000] [--only NAME ...] [--json FILE] [--output FILE]

Conditional two moons in the plane (the condition is the moon), network (128, 128, 128), batch 512. Every row has `steps`
optimiser steps in all: distilled ones spend a part of them on the flow that they begin from. The exact flow of the moons is
known in closed form (`moons.exact_map`): draws are compared with its images of the same noise, so that the sampling error,
larger than what is to be seen, cancels. Writes few_step.md; results are kept in a JSON file if one is named.
"""

from __future__ import annotations

import functools
import json
import math
import statistics
import sys
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ot
import torch
from few_step_rows import EMA, REFERENCE, ROWS, TABLE, Row
from methods import BATCH, HIDDEN, cell, study_options
from moons import DRAWS, by_class, directions_of, exact_map, moons, sliced
from timing import machine, report
from torch import Tensor

from sciflow.transport import TransportFlow
from sciflow.transport.steppers.base import Stepper

EXACT = 2_500  # draws per class in exact distances
LABELS = (-1.0, 1.0)


class Truth(NamedTuple):
    """Per class: noise (DRAWS, 2), where the exact flow takes it, fresh data and once more fresh data."""

    noise: list[Tensor]
    exact: list[Tensor]
    fresh: list[Tensor]
    other: list[Tensor]


@functools.cache
def truth(seed: int) -> Truth:
    generator = torch.Generator().manual_seed(4000 + seed)
    noise = [torch.randn(DRAWS, 2, generator=generator) for _ in LABELS]
    fresh, other = (by_class(*moons(k + seed, 3 * DRAWS), True) for k in (2000, 3000))
    return Truth(noise, [exact_map(z, label) for z, label in zip(noise, LABELS, strict=True)], fresh, other)


def assigned(x: Tensor, y: Tensor) -> float:
    """Squared 2-Wasserstein distance of two samples of one size, by network simplex."""
    cost = torch.cdist(x.double(), y.double()).square().numpy()
    return float(ot.emd2(np.empty(0), np.empty(0), cost, numItermax=10**7))


@functools.cache
def assigned_floor(seed: int) -> list[float]:
    found = truth(seed)
    return [assigned(x[:EXACT], y[:EXACT]) for x, y in zip(found.exact, found.fresh, strict=True)]


@torch.no_grad()
def squares(flow: TransportFlow, stepper: Stepper, seed: int, exact: bool) -> dict[str, float]:
    """Squared distances over the classes.

    `paired`: sliced, to the exact flow's images of the same noise; `debiased`: sliced, to fresh data less an independent
    floor; `map`: to the exact flow's images point by point; `exact`: by assignment, to fresh data less that of the exact
    flow's images.
    """
    found, directions, sampler = truth(seed), directions_of(2), flow.sampling(stepper=stepper)
    columns: dict[str, list[float]] = {"paired": [], "debiased": [], "map": [], "exact": []}
    for k, label in enumerate(LABELS):
        z = found.noise[k]
        x = sampler.solve(z, flow.encoder(torch.full((DRAWS, 1), label)), None, 0.0, 1.0, density=False).x.double()
        columns["paired"].append(sliced(x, found.exact[k], directions))
        columns["debiased"].append(sliced(x, found.fresh[k], directions) - sliced(found.other[k], found.fresh[k], directions))
        columns["map"].append(float((x - found.exact[k]).square().sum(1).mean()))
        if exact:
            columns["exact"].append(assigned(x[:EXACT], found.fresh[k][:EXACT]) - assigned_floor(seed)[k])
    return {name: statistics.fmean(values) for name, values in columns.items() if values}


def measure(row: Row, seed: int, steps: int) -> dict[str, Any]:
    flow, seconds = row.train(seed, steps)
    many = row.teacher is None
    return {
        "seconds": seconds,
        "one": squares(flow, row.one, seed, exact=not many),
        "fifty": squares(flow, row.fifty, seed, exact=many),
    }


def root(square: float) -> float:
    return math.sqrt(max(square, 0.0))


def table(results: dict[str, list[dict[str, Any]]]) -> list[str]:
    """The claim: each row's one evaluation over fifty of flow matching, seed by seed."""
    heads = [
        "method", "W2, 1 evaluation", "W2, 50 evaluations", "ratio to flow matching at 50", "ratio to the flow it shortens",
        "exact W2", "ratio in it", "W2 less an independent floor, 1 / 50", "map error, 1 evaluation", "training, CPU s",
    ]  # fmt: skip
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---|" * (len(heads) - 1)]
    for row in TABLE:
        runs = results.get(row.name, [])
        if not runs:
            continue
        many = row.teacher is None  # flows: what counts are their fifty evaluations
        paired, fifty = ([root(run[n]["paired"]) for run in runs] for n in ("one", "fifty"))
        exact = [root(run["fifty" if many else "one"]["exact"]) for run in runs]

        def ratio(values: list[float], name: str, kind: str) -> str:
            base = [root(run["fifty"][kind]) for run in results[name]]
            return cell([a / b for a, b in zip(values, base, strict=False)], 2)

        cells = [
            row.name + f" ({len(runs)} seed)" * (len(runs) == 1), cell(paired, 4), cell(fifty, 4),
            ratio(fifty if many else paired, REFERENCE, "paired"), ratio(paired, row.teacher, "paired") if row.teacher else "-",
            cell(exact, 4), ratio(exact, REFERENCE, "exact"),
            " / ".join(cell([root(run[n]["debiased"]) for run in runs]) for n in ("one", "fifty")),
            cell([root(run["one"]["map"]) for run in runs]), f"{statistics.fmean(run['seconds'] for run in runs):.0f}",
        ]  # fmt: skip
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def floor() -> list[str]:
    """How well distances to independent samples can be told at all."""
    directions = directions_of(2)
    samples = [by_class(*moons(7000 + k, 3 * DRAWS), True) for k in range(12)]
    square = [statistics.fmean(sliced(a, b, directions) for a, b in zip(x, y, strict=True))
              for x, y in zip(samples[::2], samples[1::2], strict=True)]  # fmt: skip
    exact = [statistics.fmean(assigned(a[:EXACT], b[:EXACT]) for a, b in zip(x, y, strict=True))
             for x, y in zip(samples[:6:2], samples[1:6:2], strict=True)]  # fmt: skip
    return [
        f"Floor, data against independent data: sliced {root(statistics.fmean(square)):.4f} at {DRAWS:,} per class, squares "
        f"{statistics.fmean(square):.1e} ± {statistics.stdev(square):.1e}; exact {root(statistics.fmean(exact)):.4f} at "
        f"{EXACT:,} per class, squares {statistics.fmean(exact):.1e} ± {statistics.stdev(exact):.1e}. A distance of "
        f"{root(statistics.stdev(square)):.4f} (sliced) or {root(statistics.stdev(exact)):.4f} (exact) has the square of one "
        "standard deviation of that floor: distances of 0.01 cannot be ranked by it, and the ratios use shared noise instead.",
    ]


def main() -> None:
    arguments, kept = study_options(__doc__, Path(__file__), [row.name for row in TABLE], steps=10_000)
    for seed in arguments.seeds:
        for row in TABLE:
            key = f"{row.name}/{arguments.steps}/{seed}"
            wanted = row.name in arguments.only and not (row.study and seed != arguments.seeds[0])
            if wanted and key not in kept:
                kept[key] = measure(row, seed, arguments.steps)
                sys.stderr.write(f"{key} {kept[key]}\n")
                if arguments.json:
                    arguments.json.write_text(json.dumps(kept))
    seeds, steps = " ".join(map(str, arguments.seeds)), arguments.steps
    results = {row.name: [kept[k] for s in arguments.seeds if (k := f"{row.name}/{steps}/{s}") in kept] for row in TABLE}
    lines = [
        "# One evaluation against fifty",
        "",
        f"{machine()}. Conditional two moons, {ROWS:,} rows, network {HIDDEN}, batch {BATCH}, Adam with a cosine from 2e-3, "
        f"moving average {EMA}, seeds {seeds}: mean ± standard deviation. Rows have {steps:,} steps in all. Reflow spends "
        "three quarters of them on a first flow, distilled maps half, and they go on from its weights; they are held against "
        f"that flow and, as the equal budget, against flow matching trained for all {steps:,}. Settings were compared on seed "
        "10 alone.",
        "",
        f"W2: sliced 2-Wasserstein distance, 64 directions, of {DRAWS:,} draws per class to the images of the same noise under "
        "the exact flow, which is known in closed form: draws of the data with the same sampling error, which cancels. Exact "
        f"W2: by assignment, {EXACT:,} draws per class to fresh data, less that of the exact flow's images, in squares; at 50 "
        "evaluations in the rows of flow matching, else at one. Beside them the sliced distance to fresh data, less the floor "
        "of another fresh sample in squares (0: below it). Map error: root mean square distance of the images from those of "
        "the exact flow, point by point, a bound on the exact W2. Where points are sparse a sample of this size cannot be "
        "rearranged to undo an error: the exact W2 found lies between the true one and the map error, and it is noisy.",
        "",
        *floor(),
        "",
        f"    python benchmarks/few_step.py --seeds {seeds} --steps {steps}",
        "",
        *table(results),
        "",
    ]
    report("\n".join(lines), arguments.output)


if __name__ == "__main__":
    main()
