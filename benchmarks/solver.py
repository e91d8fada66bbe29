"""Sampling a trained velocity field: time at equal error, own steppers against torchdiffeq, zuko and torchode.

    python benchmarks/solver.py [--repeats 15] [--steps 1500]

D = 32, batch 1024, network 33-256-256-256-32, float32, one thread; torchode is left out where it is not installed.
All solvers run in turn at a sweep of tolerances (or numbers of steps); for each the time, the evaluations and the root mean
square error against a fine float64 solution. The log error, made monotone in the evaluations (isotonic regression), is
read off at the targets with the log time: all solvers at exactly the same error. Writes solver.md.

The default tableau and the step control were chosen on the field "mixture", so its figures are optimistic; "rings" was not
looked at before they were fixed.
"""

from __future__ import annotations

import argparse
import copy
import functools
import math
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
from sklearn.isotonic import IsotonicRegression
from solver_candidates import Counted, solvers
from timing import interleaved, machine, median_ratio, report
from torch import Tensor

import sciflow
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers import FixedStep

FEATURES, BATCH, HIDDEN = 32, 1024, (256, 256, 256)
TARGETS = (1e-2, 1e-3, 1e-4)


def mixture(rows: int) -> Tensor:
    """Eight clusters with curved support."""
    centre = torch.randn(8, FEATURES)[torch.randint(0, 8, (rows,))] * 1.5
    x = centre + torch.randn(rows, FEATURES) * torch.linspace(0.05, 0.8, FEATURES)
    x[:, 1::2] += 0.5 * torch.sin(2 * x[:, 0::2])
    return x


def rings(rows: int) -> Tensor:
    """Sixteen noisy circles, the angle of each following that of the one before, rotated together."""
    angle = (0.7 * torch.randn(rows, FEATURES // 2)).cumsum(1) + 2 * math.pi * torch.rand(rows, 1)
    radius = 1.5 + 0.1 * torch.randn(rows, FEATURES // 2)
    x = torch.stack((radius * angle.cos(), radius * angle.sin()), 2).flatten(1)
    return x @ torch.linalg.qr(torch.randn(FEATURES, FEATURES))[0]


FIELDS = {"mixture": mixture, "rings": rings}


def trained(data: Callable[[int], Tensor], steps: int) -> TransportFlow:
    """A field trained by flow matching."""
    torch.manual_seed(0)
    x = data(512 * 16)
    flow = TransportFlow(FEATURES, network={"hidden": HIDDEN})
    sciflow.fit(flow, x, objective=FlowMatching(), epochs=max(1, steps // 16), batch_size=512, validation=0, progress=False)
    return flow


def error_of(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference).square().mean().sqrt())


LEVELS = {
    "midpoint": (8, 11, 16, 22, 32, 45, 64, 90), "rk4": (3, 4, 5, 6, 8, 10, 12, 16, 18, 22),
    "other": (1, 2, 3, 4, 5, 6, 7, 8, 9, 10),
}  # fmt: skip
TOLERANCES = tuple(10 ** (-k / 4) for k in range(1, 22))


class Point(NamedTuple):
    """One setting of a solver."""

    error: float
    evaluations: float  # of rows, over the batch
    seconds: list[float]


def sweep(field: Field, x: Tensor, reference: Tensor, repeats: int) -> dict[str, list[Point]]:
    """Of every solver, from coarse to fine until twice below the smallest target."""
    counter = Counted(field)
    counted, bare = solvers(counter), solvers(field)
    points: dict[str, list[Point]] = {name: [] for name in bare}
    settings = {}
    for name in bare:
        levels = [1 / n for n in LEVELS.get(name.split()[-1], LEVELS["other"])] if "Fixed" in name else TOLERANCES
        kept = []
        for level in levels:
            counter.counter["rows"] = 0
            kept.append((level, error_of(counted[name](x, level), reference), counter.counter["rows"] / BATCH))
            if kept[-1][1] < min(TARGETS) / 2:
                break
        settings[name] = kept
    for number in range(max(map(len, settings.values()))):  # the solvers' settings of like accuracy in one interleaved run
        chosen = {name: kept[number] for name, kept in settings.items() if number < len(kept)}
        runs = {name: (lambda run=bare[name], level=level: run(x, level)) for name, (level, _, _) in chosen.items()}
        seconds = interleaved(runs, repeats, warm=1)
        for name, (_, error, evaluations) in chosen.items():
            points[name].append(Point(error, evaluations, seconds[name]))
    return points


def at_error(points: list[Point], values: list[float], target: float) -> float | None:
    """`values` at the target error: log-log interpolation along the monotone curve; None if it is not reached.

    A solver that is better than that at its coarsest setting costs what this costs.
    """
    order = sorted(range(len(points)), key=lambda k: (points[k].evaluations, -points[k].error))
    logs = [math.log(points[k].error) for k in order]
    falling = -IsotonicRegression().fit_transform(range(len(logs)), [-value for value in logs])
    known = [math.log(values[k]) for k in order]
    if falling[-1] > math.log(target):
        return None
    if falling[0] <= math.log(target):
        return math.exp(known[0])
    last = max(k for k in range(len(falling)) if falling[k] >= math.log(target))
    if last == len(falling) - 1:
        return math.exp(known[-1])
    share = (falling[last] - math.log(target)) / (falling[last] - falling[last + 1])
    return math.exp(known[last] + share * (known[last + 1] - known[last]))


def equal_error(name_of_field: str, flow: TransportFlow, repeats: int) -> list[str]:
    field = flow.field()
    x = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
    fine = copy.deepcopy(flow).double()
    reference = FixedStep(40, method="dopri5").solve(fine.field(), x.double(), 0.0, 1.0).x
    points = sweep(field, x, reference, repeats)
    lines = []
    for target in TARGETS:
        lines += [
            "", f"## {name_of_field.capitalize()}, error {target:g}", "",
            "| solver | evaluations | ms | of torchdiffeq | of zuko |",
            "|---|---|---|---|---|",
        ]  # fmt: skip
        times = {}
        for name, found in points.items():
            time = at_error(found, [statistics.median(point.seconds) for point in found], target)
            calls = at_error(found, [point.evaluations for point in found], target)
            if time is not None and calls is not None:
                times[name] = (time, calls)
        for name, (time, calls) in times.items():
            ratios = [
                f"{time / times[peer][0]:.2f}" if peer in times else "" for peer in ("torchdiffeq dopri5", "zuko dopri45")
            ]
            lines.append(f"| {name} | {calls:.1f} | {time * 1e3:.0f} | {ratios[0]} | {ratios[1]} |")
    lines += ["", f"## {name_of_field.capitalize()}, what was measured", "", "Evaluations: rms error, from coarse to fine.", ""]
    lines += [f"- {name}: " + ", ".join(f"{p.evaluations:.0f}: {p.error:.1e}" for p in found) for name, found in points.items()]
    return lines


class Relaxing(Field):
    """The trained field and a pull of rate `rate` (B,) to a moving point: stiff in the rows where the rate is large."""

    def __init__(self, field: Field, rate: Tensor) -> None:
        self.field, self.rate = field, rate
        self.path, self.space, self.mask = field.path, field.space, field.mask

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        target = torch.cos(t.expand(len(x))).unsqueeze(1)
        return self.field(t, x) - self.rate.unsqueeze(1) * (x - target)

    def rows(self, index: Tensor) -> Field | None:
        field = self.field.rows(index)
        return None if field is None else Relaxing(field, self.rate[index])


def one_stiff_row(flow: TransportFlow, repeats: int) -> list[str]:
    x = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(2))
    calm = torch.zeros(BATCH)
    stiff = calm.clone()
    stiff[17] = 300.0
    names = (
        "sciflow Adaptive bogacki_shampine5",
        "sciflow Adaptive tsit5",
        "sciflow Adaptive dopri5",
        "torchdiffeq dopri5",
        "zuko dopri45",
        "torchode dopri5",
    )
    lines = [
        "", "## Mixture, one stiff row in 1024", "",
        "One row is pulled to a moving point at rate 300; tolerance 1e-4 for all.", "",
        "| solver | ms without | ms with | factor | error of the stiff row | evaluations without / with |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    fields = {"without": Relaxing(flow.field(), calm), "with": Relaxing(flow.field(), stiff)}
    fine = copy.deepcopy(flow).double()
    exact = FixedStep(1000, method="rk4").solve(Relaxing(fine.field(), stiff[17:18].double()), x[17:18].double(), 0.0, 1.0).x[0]
    for name in [name for name in names if name in solvers(fields["with"])]:
        runs = {key: functools.partial(solvers(field)[name], x, 1e-4) for key, field in fields.items()}
        seconds = interleaved(runs, max(3, repeats // 3), warm=1)
        counts = []
        for field in fields.values():
            counter = Counted(field)
            found = solvers(counter)[name](x, 1e-4)
            counts.append(counter.counter["rows"] / BATCH)
        medians = [statistics.median(seconds[key]) * 1e3 for key in fields]
        lines.append(
            f"| {name} | {medians[0]:.0f} | {medians[1]:.0f} | {median_ratio(seconds['with'], seconds['without']):.2f} | "
            f"{float((found[17].double() - exact).square().mean().sqrt()):.1e} | {counts[0]:.1f} / {counts[1]:.1f} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=1500, help="training steps of the field")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    flows = {name: trained(data, options.steps) for name, data in FIELDS.items()}
    with torch.no_grad():
        lines = [line for name, flow in flows.items() for line in equal_error(name, flow, options.repeats)]
        lines += one_stiff_row(flows["mixture"], options.repeats)
    head = [
        "# Solvers",
        "",
        f"{machine()}. Two fields trained by flow matching: the default tableau and step control were chosen on the mixture, "
        f"the rings were not looked at before. {FEATURES} features, batch {BATCH}, network {HIDDEN}, float32, one "
        f"thread. Milliseconds of processor time, medians of {options.repeats} interleaved rounds, read off at "
        "exactly equal error (log-log, along the monotone curve). Evaluations are of rows, divided by the batch: finished rows "
        "cost nothing. `atol` is `rtol` / 10 everywhere.",
    ]
    report("\n".join(head + lines) + "\n", options.output)


if __name__ == "__main__":
    main()
