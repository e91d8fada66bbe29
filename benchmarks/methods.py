"""Transport methods side by side: error of few-step sampling, likelihood, training time, size.

    python benchmarks/methods.py [--seeds 0 1 2] [--steps 1500] [--only NAME ...] [--output benchmarks/methods.md]

Two conditional data sets: two moons in 2 dimensions (the condition is the moon), and the same rotated into 32 dimensions
together with 30 normal ones. Every method has the same network (128, 128, 128), batch 512 and number of steps. The error is
the sliced 2-Wasserstein distance of 10,000 draws per class to 10,000 fresh ones, over fixed directions, squared, less the
squared distance of two fresh samples (the floor), square root. Writes methods.md, JSON beside it with --json.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from code_lines import code_lines
from moons import DRAWS, SETS, Data, by_class, directions_of, error
from timing import machine, report

import sciflow
from sciflow.training import Batch
from sciflow.transport import (
    Adaptive,
    AlphaFlow,
    ClassifierFree,
    ConditionalOT,
    ConditionShift,
    ConsistencyFlowMatching,
    ContrastiveFlowMatching,
    Endpoint,
    EndpointStep,
    ExactOT,
    FixedStep,
    FlowMapDistillation,
    FlowMatching,
    GaussianMixture,
    LogitNormal,
    MapStep,
    MeanFlow,
    PiecewiseReflow,
    Reflow,
    SDEStep,
    SplitMeanFlow,
    TransportFlow,
    VariancePreserving,
    WeightedCoupling,
    bellman_steps,
    reflow_pairs,
)  # fmt: skip
from sciflow.transport.steppers.base import Stepper

EVALUATIONS = (1, 2, 4, 20)
TRANSPORT = Path(sciflow.__file__).parent / "transport"
ROWS, BATCH, HIDDEN = 20_000, 512, (128, 128, 128)


class Method(NamedTuple):
    """What is trained and how it is sampled with a number of evaluations.

    `train(flow, data, seed, steps)` fits the flow, None samples plain flow matching; `stepper(flow, evaluations)` may be None
    where a number of evaluations is not possible. `source` is the file whose lines of code are counted.
    """

    name: str
    flow: dict[str, Any]
    train: Callable[..., TransportFlow] | None
    stepper: Callable[[TransportFlow, int], Stepper | None]
    source: str
    conditional: bool = True
    density: bool = True


def fit(flow: TransportFlow, data: Any, seed: int, steps: int, make: Callable[[], Any], *, ema: float = 0.995) -> TransportFlow:
    """`steps` steps of an objective with a moving average, without validation: the budget is the same for all."""
    x, c = data
    batch = x if isinstance(x, Batch) else Batch(x, c)
    epochs = max(1, round(steps / math.ceil(len(batch.x) / BATCH)))
    sciflow.fit(
        flow, batch, objective=make(), validation=0.0, epochs=epochs, batch_size=BATCH, learning_rate=2e-3, ema=ema,
        seed=seed, progress=False,
    )  # fmt: skip
    return flow


@functools.cache
def plain(features: int, seed: int, steps: int) -> tuple[TransportFlow, float]:
    """Plain flow matching, which several rows sample in their own way, and its seconds."""
    method = next(m for m in METHODS if m.name == "flow matching")
    data = next(d for d in SETS if d.features == features)
    x, c = data.draw(1000 + seed, ROWS)
    start = time.process_time()
    flow = fit(build(method, data, seed), (x, c), seed, steps, FlowMatching)
    return flow, time.process_time() - start


def trained(make: Callable[[], Any]) -> Callable[..., TransportFlow]:
    return lambda flow, data, seed, steps: fit(flow, data, seed, steps, make)


def reflowed(flow: TransportFlow, data: Any, seed: int, steps: int) -> TransportFlow:
    """A first flow with the budget, 40,000 of its pairs, and a second one, begun from it, with the budget again."""
    fit(flow, data, seed, steps, FlowMatching)
    pairs = reflow_pairs(flow, 2 * ROWS, data[1], stepper=FixedStep(25), seed=seed)
    return fit(flow, (pairs, None), seed, steps, Reflow)


def piecewise(flow: TransportFlow, data: Any, seed: int, steps: int) -> TransportFlow:
    import copy

    fit(flow, data, seed, steps, FlowMatching)
    teacher = copy.deepcopy(flow)
    return fit(flow, data, seed, steps, lambda: PiecewiseReflow(teacher, 4))


def ode(flow: TransportFlow, evaluations: int) -> Stepper:
    return FixedStep(1, method="euler") if evaluations == 1 else FixedStep(evaluations // 2)


def euler(flow: TransportFlow, evaluations: int) -> Stepper:
    return FixedStep(evaluations, method="euler")


def bellman(flow: TransportFlow, evaluations: int) -> Stepper | None:
    if evaluations in (1, 20):
        return None
    return bellman_steps(flow, evaluations, torch.tensor([[-1.0], [1.0]]), rows=256, fine=32, seed=7)


def two_time(**options: Any) -> dict[str, Any]:
    return {"network": {"hidden": HIDDEN, "two_time": True}, **options}


ONE = {"network": {"hidden": HIDDEN}}
MAP: Any = lambda flow, evaluations: MapStep(evaluations)  # noqa: E731
METHODS = [
    Method("flow matching", ONE, None, ode, "objectives/flow_matching.py"),
    Method("  Euler steps", ONE, None, euler, "objectives/flow_matching.py"),
    Method("  Bellman steps", ONE, None, bellman, "steppers/bespoke.py"),
    Method("  SDE sampling", ONE, None, lambda flow, evaluations: SDEStep(evaluations), "steppers/sde.py",
           density=False),
    Method("exact OT (unconditional)", ONE, trained(lambda: FlowMatching(coupling=ExactOT(block=128))), ode,
           "couplings/exact.py", conditional=False),
    Method("independent (unconditional)", ONE, trained(FlowMatching), ode, "objectives/flow_matching.py", conditional=False),
    Method("W-CFM (unconditional)", ONE, trained(lambda: FlowMatching(coupling=WeightedCoupling(4.0))), ode,
           "couplings/weighted.py", conditional=False),
    Method("C2OT", ONE, trained(lambda: FlowMatching(coupling=ConditionalOT(block=128))), ode, "couplings/conditional.py"),
    Method("variance-preserving path", {**ONE, "path": VariancePreserving()}, trained(FlowMatching), ode, "paths/schedules.py"),
    Method("endpoint head", {**ONE, "head": Endpoint()}, trained(FlowMatching),
           lambda flow, evaluations: EndpointStep(evaluations), "heads/endpoint.py", density=False),
    Method("Gaussian-mixture head", {**ONE, "head": GaussianMixture(4)}, trained(FlowMatching), ode, "heads/mixture.py"),
    Method("CAR-Flow, source side", {**ONE, "base": "shift"}, trained(FlowMatching), ode, "bases/shift.py"),
    Method("contrastive", ONE, trained(lambda: ContrastiveFlowMatching()), ode, "objectives/contrastive.py"),
    Method("logit-normal times", ONE, trained(lambda: FlowMatching(times=LogitNormal())), ode, "times/priors.py"),
    Method("classifier-free, strength 1.5", {**ONE, "unconditional": True, "guidance": [ClassifierFree(1.5)]},
           trained(lambda: FlowMatching(drop_condition=0.1)), ode, "guidance/classifier_free.py"),
    Method("reflow", ONE, reflowed, ode, "objectives/reflow.py"),
    Method("piecewise reflow, 4 windows", ONE, piecewise, euler, "objectives/piecewise.py"),
    Method("Consistency-FM", ONE, trained(ConsistencyFlowMatching), euler, "objectives/consistency.py"),
    Method("MeanFlow", two_time(), trained(MeanFlow), MAP, "objectives/mean_flow.py", density=False),
    Method("SplitMeanFlow", two_time(), trained(SplitMeanFlow), MAP, "objectives/split_mean_flow.py", density=False),
    Method("alpha-Flow", two_time(), lambda flow, data, seed, steps: fit(flow, data, seed, steps,
           lambda: AlphaFlow(end=int(0.7 * steps))), MAP, "objectives/alpha_flow.py", density=False),
    Method("flow map, Lagrangian", two_time(), trained(partial(FlowMapDistillation, "lagrangian")), MAP,
           "objectives/flow_map_distillation.py", density=False),
    Method("flow map, Eulerian", two_time(), trained(partial(FlowMapDistillation, "eulerian")), MAP,
           "objectives/flow_map_distillation.py", density=False),
]  # fmt: skip


def build(method: Method, data: Data, seed: int) -> TransportFlow:
    torch.manual_seed(seed)
    options = dict(method.flow)
    if options.get("base") == "shift":
        from sciflow.distributions import DiagonalNormal

        options["base"] = ConditionShift(DiagonalNormal(data.features), 1)
    return TransportFlow(data.features, 1 if method.conditional else 0, **options)


def measure(method: Method, data: Data, seed: int, steps: int) -> dict[str, Any]:
    """One training and everything that is reported of it."""
    x, c = data.draw(1000 + seed, ROWS)
    flow = build(method, data, seed)
    found: dict[str, Any] = {}
    if method.train is None:
        flow, found["seconds"] = plain(data.features, seed, steps)
    else:
        start = time.process_time()
        method.train(flow, (x, c if method.conditional else None), seed, steps)
        found["seconds"] = time.process_time() - start
    flow.eval()
    directions = directions_of(data.features)
    fresh, other = (by_class(*data.draw(k + seed, 3 * DRAWS), method.conditional) for k in (2000, 3000))
    torch.manual_seed(4000 + seed)
    with torch.no_grad():
        for evaluations in EVALUATIONS:
            stepper = method.stepper(flow, evaluations)
            if stepper is None:
                continue
            sampler = flow.sampling(stepper=stepper)
            if method.conditional:
                draws = [sampler(torch.tensor([k])).sample((DRAWS,)) for k in (-1.0, 1.0)]
            else:
                draws = [sampler().sample((2 * DRAWS,))]
            found[f"w{evaluations}"] = error(draws, fresh, other, directions)
        if method.density:
            exact = flow.sampling(stepper=Adaptive(rtol=1e-5, atol=1e-5))
            point, label = data.draw(5000 + seed, 1000)
            bound = exact(label) if method.conditional else exact()
            found["log_prob"] = float(bound.log_prob(point).mean())
    return found


def cell(values: list[float | None], digits: int = 3) -> str:
    numbers = [v for v in values if v is not None]
    if not numbers:
        return "-"
    spread = f" ± {statistics.stdev(numbers):.{digits}f}" if len(numbers) > 1 else ""
    return f"{statistics.fmean(numbers):.{digits}f}{spread}"


def table(data: Data, results: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        f"## {data.name}",
        "",
        "| method | " + " | ".join(f"W2, {n} evaluation{'s' * (n > 1)}" for n in EVALUATIONS)
        + " | log-likelihood | training, CPU s | lines of code |",
        "|---|" + "---|" * (len(EVALUATIONS) + 3),
    ]  # fmt: skip
    for method in METHODS:
        runs = results.get(method.name)
        if runs:
            columns = [*(f"w{n}" for n in EVALUATIONS), "log_prob"]
            cells = [cell([run.get(column) for run in runs]) for column in columns]
            seconds = statistics.fmean(run["seconds"] for run in runs)
            lines.append(
                f"| {method.name} | " + " | ".join(cells) + f" | {seconds:.0f} | {code_lines(TRANSPORT / method.source)} |"
            )
    return [*lines, ""]


def study_options(text: str | None, script: Path, names: list[str], *, steps: int) -> tuple[argparse.Namespace, dict[str, Any]]:
    """The options of a study of several methods and seeds, and the results that its JSON file holds already."""
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=steps)
    parser.add_argument("--only", nargs="+", default=names)
    parser.add_argument("--output", type=Path, default=script.with_suffix(".md"))
    parser.add_argument("--json", type=Path, help="results, read back and added to if the file exists")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    return arguments, json.loads(arguments.json.read_text()) if arguments.json and arguments.json.exists() else {}


def main() -> None:
    arguments, kept = study_options(__doc__, Path(__file__), [method.name for method in METHODS], steps=1500)
    for data in SETS:
        for method in METHODS:
            if method.name not in arguments.only:
                continue
            for seed in arguments.seeds:
                key = f"{data.features}/{method.name}/{seed}"
                if key not in kept:
                    kept[key] = measure(method, data, seed, arguments.steps)
                    sys.stderr.write(f"{key} {kept[key]}\n")
                    if arguments.json:
                        arguments.json.write_text(json.dumps(kept))
    seeds = " ".join(map(str, arguments.seeds))
    lines = [
        "# Transport methods side by side",
        "",
        f"{machine()}. Conditional data, network {HIDDEN}, batch {BATCH}, {arguments.steps} steps (reflow, piecewise reflow: "
        f"twice), seeds {seeds}: mean ± standard deviation. W2: sliced 2-Wasserstein distance of {DRAWS:,} draws per class to "
        "fresh data, over classes, the data-against-data floor subtracted in squares; 0 means below the floor. One evaluation "
        "is an Euler step, more are midpoint steps of two, unless the row says otherwise. Unconditional rows are measured on "
        "both moons together and compare with each other. Nothing was tuned per method. Log-likelihood in nats per event on "
        "1,000 fresh events (dopri5, 1e-5, exact trace). Indented rows sample the flow above them.",
        "",
        f"    python benchmarks/methods.py --seeds {seeds} --steps {arguments.steps}",
        "",
    ]
    for data in SETS:
        found = {m.name: [kept[k] for s in arguments.seeds if (k := f"{data.features}/{m.name}/{s}") in kept] for m in METHODS}
        lines += table(data, found)
    report("\n".join(lines), arguments.output)


if __name__ == "__main__":
    main()
