"""One evaluation against fifty: how near one-step methods come to the flow they shorten, and what limits them.

    python benchmarks/few_step.py [--seeds 0 1 2] [--steps 10000] [--only NAME ...] [--json FILE] [--output FILE]

Conditional two moons in the plane (the condition is the moon), network (128, 128, 128), batch 512. Every row has `steps`
optimiser steps in all: distilled ones spend a part of them on the flow that they begin from. The exact flow of the moons is
known in closed form (`moons.exact_map`): draws are compared with its images of the same noise, so that the sampling error,
larger than what is to be seen, cancels. Writes few_step.md; results are kept in a JSON file if one is named.
"""

from __future__ import annotations

import argparse
import copy
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import ot
import torch
from methods import BATCH, HIDDEN, cell, fit
from moons import DRAWS, by_class, directions_of, exact_map, moons, sliced
from timing import machine, report
from torch import Tensor

from sciflow.training import Batch
from sciflow.transport import (
    AlphaFlow,
    FixedStep,
    FlowMatching,
    MapStep,
    MeanFlow,
    PowerLaw,
    Reflow,
    SplitMeanFlow,
    TransportFlow,
    Uniform,
    reflow_pairs,
)
from sciflow.transport.steppers.base import Stepper

ROWS, PAIRS, EXACT, EMA = 100_000, 200_000, 2_500, 0.999
LABELS = (-1.0, 1.0)
ONE, FIFTY = FixedStep(1, method="euler"), FixedStep(25)
REFERENCE, HALF, QUARTERS = "flow matching", "flow matching, half of the steps", "flow matching, three quarters"


class Row(NamedTuple):
    """`train(seed, steps)` gives the flow and its processor seconds; `one` and `fifty` are how it is sampled.

    `teacher` is the name of the row that it shortens, None for flows: of these the fifty evaluations are compared. Rows of
    the `study` of what limits the maps have the first seed only.
    """

    name: str
    train: Callable[[int, int], tuple[TransportFlow, float]]
    one: Stepper = MapStep(1)
    fifty: Stepper = MapStep(50)
    teacher: str | None = REFERENCE
    study: bool = False


def trained(flow: TransportFlow, data: Any, seed: int, steps: int, make: Callable[[], Any]) -> tuple[TransportFlow, float]:
    start = time.process_time()
    fit(flow, data, seed, steps, make, ema=EMA)
    return flow.eval(), time.process_time() - start


def begin(seed: int, two_time: bool) -> TransportFlow:
    torch.manual_seed(seed)
    return TransportFlow(2, 1, network={"hidden": HIDDEN, "two_time": two_time})


def rows_of(seed: int) -> tuple[Tensor, Tensor]:
    return moons(1000 + seed, ROWS)


@functools.cache
def first(seed: int, steps: int, share: float) -> tuple[TransportFlow, float]:
    """What distilled rows begin from and learn from: a two-time network whose diagonal was trained for a share of the steps."""
    return trained(begin(seed, True), rows_of(seed), seed, round(share * steps), FlowMatching)


@functools.cache
def pairs(seed: int, steps: int, share: float) -> tuple[Batch, float]:
    flow, seconds = first(seed, steps, share)
    start = time.process_time()
    joined = reflow_pairs(flow, PAIRS, rows_of(seed)[1], stepper=FixedStep(8, method="rk4"), seed=seed)
    return joined, seconds + time.process_time() - start


def plain(seed: int, steps: int) -> tuple[TransportFlow, float]:
    return trained(begin(seed, False), rows_of(seed), seed, steps, FlowMatching)


def straightened(name: str, make: Callable[[], Reflow]) -> Row:
    """Reflow spends three quarters of the steps on its flow: a regression is learned quickly and cannot be better."""

    def train(seed: int, steps: int) -> tuple[TransportFlow, float]:
        joined, before = pairs(seed, steps, 0.75)
        start = copy.deepcopy(first(seed, steps, 0.75)[0])
        flow, seconds = trained(start, (joined, None), seed, steps - round(0.75 * steps), make)
        return flow, before + seconds

    return Row(name, train, ONE, FIFTY, QUARTERS)


def distilled(name: str, make: Callable[[TransportFlow, int], Any]) -> Row:
    """Maps spend half of the steps."""

    def train(seed: int, steps: int) -> tuple[TransportFlow, float]:
        teacher, before = first(seed, steps, 0.5)
        count = steps - round(0.5 * steps)
        start = copy.deepcopy(teacher)
        flow, seconds = trained(start, rows_of(seed), seed, count, lambda: make(teacher, count))
        return flow, before + seconds

    return Row(name, train, teacher=HALF)


def scratch(make: Callable[[int], Any]) -> Callable[[int, int], tuple[TransportFlow, float]]:
    return lambda seed, steps: trained(begin(seed, True), rows_of(seed), seed, steps, lambda: make(steps))


TABLE = [
    Row(REFERENCE, plain, ONE, FIFTY, None),
    Row(QUARTERS, lambda seed, steps: first(seed, steps, 0.75), ONE, FIFTY, None),
    Row(HALF, lambda seed, steps: first(seed, steps, 0.5), ONE, FIFTY, None),
    straightened("reflow", lambda: Reflow(huber=None, times=PowerLaw(-0.9))),
    distilled("MeanFlow, distilled", lambda teacher, steps: MeanFlow(ratio=0.9, last=1.0, teacher=teacher)),
    distilled("alpha-Flow, distilled",
              lambda teacher, steps: AlphaFlow(0, int(0.3 * steps), ratio=0.9, last=1.0, teacher=teacher)),
    distilled("SplitMeanFlow, distilled", lambda teacher, steps: SplitMeanFlow(ratio=0.9, last=0.5, teacher=teacher)),
    straightened("reflow, all times 0", lambda: Reflow(huber=None, times=Uniform(0.0, 1e-6)))._replace(study=True),
    straightened("reflow, default loss and times", Reflow)._replace(study=True),
    distilled("MeanFlow, distilled, all s", lambda teacher, steps: MeanFlow(teacher=teacher))._replace(study=True),
    distilled("MeanFlow without teacher, from its weights",
              lambda teacher, steps: MeanFlow(ratio=0.75, last=1.0))._replace(study=True),
    Row("MeanFlow from data", scratch(lambda steps: MeanFlow(ratio=0.75, last=1.0)), study=True),
    Row("MeanFlow from data, all s", scratch(lambda steps: MeanFlow()), study=True),
]  # fmt: skip


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--only", nargs="+", default=[row.name for row in TABLE])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    parser.add_argument("--json", type=Path, help="results, read back and added to if the file exists")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    kept = json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}
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
