"""Sampling a trained velocity field: time at equal error, own steppers against torchdiffeq, zuko and torchode.

    python benchmarks/solver.py [--repeats 15] [--steps 1500]

D = 32, batch 1024, network 33-256-256-256-32, float32, one thread; torchode is left out where it is not installed.
For every solver the tolerance (or number of steps) is searched at which the root mean square error against a fine float64
solution is the target; then all solvers run in turn. Writes solver.md.
"""

from __future__ import annotations

import argparse
import copy
import functools
import itertools
import math
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleaved, machine, median_ratio, report
from torch import Tensor

import sciflow
from sciflow.transport.field import Field
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.steppers import Adaptive, FixedStep, Stepper

FEATURES, BATCH, HIDDEN = 32, 1024, (256, 256, 256)
TARGETS = (1e-2, 1e-3, 1e-4)

Follow = Callable[[Tensor, float], Tensor]


class Counted(Field):
    """Counts evaluations, in batches (calls) and rows."""

    def __init__(self, field: Field, counter: dict[str, float] | None = None) -> None:
        self.field, self.counter = field, counter if counter is not None else {"calls": 0, "rows": 0}
        self.path, self.space, self.mask = field.path, field.space, field.mask

    def __call__(self, t: Tensor, x: Tensor) -> Tensor:
        self.counter["calls"] += 1
        self.counter["rows"] += len(x)
        return self.field(t, x)

    def rows(self, index: Tensor) -> Field | None:
        field = self.field.rows(index)
        return None if field is None else Counted(field, self.counter)


def trained(steps: int) -> TransportFlow:
    """A field trained by flow matching on a mixture with curved support."""
    torch.manual_seed(0)
    rows = 512 * 16
    centre = torch.randn(8, FEATURES)[torch.randint(0, 8, (rows,))] * 1.5
    x = centre + torch.randn(rows, FEATURES) * torch.linspace(0.05, 0.8, FEATURES)
    x[:, 1::2] += 0.5 * torch.sin(2 * x[:, 0::2])
    flow = TransportFlow(FEATURES, network={"hidden": HIDDEN})
    sciflow.fit(flow, x, objective=FlowMatching(), epochs=max(1, steps // 16), batch_size=512, validation=0, progress=False)
    return flow


def own(field: Field, make: Callable[[float], Stepper]) -> Follow:
    return lambda x, level: make(level).solve(field, x, 0.0, 1.0).x


def torchdiffeq_dopri5(field: Field) -> Follow:
    from torchdiffeq import odeint

    times = torch.tensor([0.0, 1.0])
    return lambda x, level: odeint(field, x, times, rtol=level, atol=level / 10, method="dopri5")[-1]


def zuko_dopri5(field: Field) -> Follow:
    from zuko.utils import odeint

    zero, one = torch.tensor(0.0), torch.tensor(1.0)
    return lambda x, level: odeint(field, x, zero, one, rtol=level, atol=level / 10)


def torchode_solver(field: Field, method: str) -> Follow:
    import torchode

    term = torchode.ODETerm(field)  # type: ignore[arg-type]
    step = {"dopri5": torchode.Dopri5, "tsit5": torchode.Tsit5}[method](term=term)

    def follow(x: Tensor, level: float) -> Tensor:
        controller = torchode.IntegralController(atol=level / 10, rtol=level, term=term)
        adjoint = torchode.AutoDiffAdjoint(step, controller)
        times = torch.tensor([[0.0, 1.0]]).expand(len(x), 2)
        return adjoint.solve(torchode.InitialValueProblem(y0=x, t_eval=times)).ys[:, -1]

    return follow


def solvers(field: Field) -> dict[str, Follow]:
    found = {
        "sciflow Adaptive tsit5": own(field, lambda level: Adaptive(level, method="tsit5")),
        "sciflow Adaptive dopri5": own(field, lambda level: Adaptive(level, method="dopri5")),
        "sciflow Adaptive bogacki_shampine": own(field, lambda level: Adaptive(level, method="bogacki_shampine")),
        **{
            f"sciflow FixedStep {name}": own(field, lambda level, name=name: FixedStep(round(1 / level), method=name))  # type: ignore[misc]
            for name in ("midpoint", "rk4", "dopri5")
        },
        "torchdiffeq dopri5": torchdiffeq_dopri5(field),
        "zuko dopri45": zuko_dopri5(field),
    }
    try:
        import torchode  # noqa: F401
    except ImportError:
        return found
    return found | {f"torchode {name}": torchode_solver(field, name) for name in ("dopri5", "tsit5")}


def error_of(x: Tensor, reference: Tensor) -> float:
    return float((x.double() - reference).square().mean().sqrt())


def curve(follow: Follow, x: Tensor, reference: Tensor, *, fixed: bool) -> list[tuple[float, float]]:
    """Tolerances (or 1 / steps) and their errors, falling until the smallest target is met."""
    levels = [1 / n for n in (2, 4, 6, 8, 11, 16, 22, 32, 45, 64, 90)] if fixed else [10 ** (-k / 2) for k in range(2, 13)]
    points = []
    for level in levels:
        points.append((level, error_of(follow(x, level), reference)))
        if points[-1][1] <= min(TARGETS):
            break
    return points


def level_for(points: list[tuple[float, float]], target: float, *, fixed: bool) -> float | None:
    """Log-interpolated; None if the target is not met."""
    for (before, error), (after, smaller) in itertools.pairwise(points):
        if smaller <= target <= error:
            share = math.log(error / target) / math.log(error / smaller)
            level = before ** (1 - share) * after**share
            return 1 / math.ceil(1 / level) if fixed else level
    return None


def equal_error(flow: TransportFlow, repeats: int) -> list[str]:
    field = flow.field()
    x = torch.randn(BATCH, FEATURES, generator=torch.Generator().manual_seed(1))
    fine = copy.deepcopy(flow).double()
    reference = FixedStep(40, method="dopri5").solve(fine.field(), x.double(), 0.0, 1.0).x
    curves = {name: curve(run, x, reference, fixed="Fixed" in name) for name, run in solvers(field).items()}
    lines = []
    for target in TARGETS:
        levels = {name: level_for(points, target, fixed="Fixed" in name) for name, points in curves.items()}
        chosen = {name: (run, levels[name]) for name, run in solvers(field).items() if levels[name] is not None}
        runs = {name: (lambda run=run, level=level: run(x, level)) for name, (run, level) in chosen.items()}
        seconds = interleaved(runs, repeats, warm=1)
        lines += [
            "", f"## Error {target:g}", "",
            "| solver | tolerance or steps | rms error | worst row | evaluations | ms | of torchdiffeq | of zuko |",
            "|---|---|---|---|---|---|---|---|",
        ]  # fmt: skip
        for name, (_, level) in chosen.items():
            counter = Counted(field)
            found = solvers(counter)[name](x, level)  # type: ignore[arg-type]
            worst = float((found.double() - reference).square().mean(1).sqrt().max())
            assert level is not None
            ratios = [1 / median_ratio(seconds[peer], seconds[name]) for peer in ("torchdiffeq dopri5", "zuko dopri45")]
            lines.append(
                f"| {name} | {f'{1 / level:.0f} steps' if 'Fixed' in name else f'{level:.1e}'} | "
                f"{error_of(found, reference):.1e} | {worst:.1e} | {counter.counter['rows'] / BATCH:.1f} | "
                f"{statistics.median(seconds[name]) * 1e3:.0f} | {ratios[0]:.2f} | {ratios[1]:.2f} |"
            )
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
    names = ("sciflow Adaptive tsit5", "sciflow Adaptive dopri5", "torchdiffeq dopri5", "zuko dopri45", "torchode dopri5")
    lines = [
        "", "## One stiff row in 1024", "",
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
    flow = trained(options.steps)
    with torch.no_grad():
        lines = equal_error(flow, options.repeats) + one_stiff_row(flow, options.repeats)
    head = [
        "# Solvers",
        "",
        f"{machine()}. A field trained by flow matching, {FEATURES} features, batch {BATCH}, network {HIDDEN}, float32, one "
        f"thread. Milliseconds of processor time, medians of {options.repeats} interleaved rounds; ratios are medians over "
        "rounds. Evaluations are of rows, divided by the batch: finished rows cost nothing. `atol` is `rtol` / 10 everywhere.",
    ]
    report("\n".join(head + lines) + "\n", options.output)


if __name__ == "__main__":
    main()
