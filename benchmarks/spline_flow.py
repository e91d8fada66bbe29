"""Conditional neural spline flow against nflows, zuko and normflows.

    python benchmarks/spline_flow.py [--compile] [--repeats 40] [--batch 4096]

D = 8 features, 8 conditions, 5 coupling transforms, 8 bins, hidden (128, 128), float32. One run calls all libraries in
turn; figures are medians of processor time, ratios medians over rounds. Writes spline_flow.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from timing import interleaved, machine, median_ratio, peak_memory, report
from torch import Tensor, nn

from sciflow.flows import NeuralSplineFlow

FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN, BOUND = 8, 8, 5, 8, (128, 128), 5.0
TARGETS = {"sciflow": (2.5, 2.0, 2.4), "sciflow, compiled": (3.5, 2.6, 3.3)}


class Subject(NamedTuple):
    """One library's flow as the two calls that are timed."""

    parameters: list[nn.Parameter]
    log_prob: Callable[[], Tensor]
    sample: Callable[[], Any]


def sciflow_subject(x: Tensor, c: Tensor, *, compiled: bool = False) -> Subject:
    flow = NeuralSplineFlow(FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN, bound=BOUND, compile=compiled)
    return Subject(list(flow.parameters()), lambda: flow(c).log_prob(x), lambda: flow(c).sample())


def networks_subject(x: Tensor, c: Tensor) -> Subject:
    """sciflow's networks without splines: what no spline, however fast, can beat."""
    flow = NeuralSplineFlow(FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN, bound=BOUND)
    inputs = torch.cat((x[:, : FEATURES // 2], c), 1).T.contiguous()

    def run() -> Tensor:
        return torch.stack([layer.network(inputs).sum(0) for layer in flow.layers]).sum(0)  # type: ignore[operator,union-attr]

    return Subject(list(flow.parameters()), run, run)


def zuko_subject(x: Tensor, c: Tensor) -> Subject:
    import zuko

    flow = zuko.flows.NSF(FEATURES, CONDITIONS, bins=BINS, transforms=TRANSFORMS, hidden_features=HIDDEN, passes=2)
    return Subject(list(flow.parameters()), lambda: flow(c).log_prob(x), lambda: flow(c).sample())


class PlainNetwork(nn.Module):
    """Two hidden layers with the context concatenated: the same network, and number of weights, as sciflow's."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.hidden_features = HIDDEN[0]
        self.layers = nn.Sequential(
            nn.Linear(inputs + CONDITIONS, HIDDEN[0]),
            nn.ReLU(),
            nn.Linear(HIDDEN[0], HIDDEN[1]),
            nn.ReLU(),
            nn.Linear(HIDDEN[1], outputs),
        )

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        return self.layers(torch.cat([x, context], 1))


def nflows_subject(x: Tensor, c: Tensor) -> Subject:
    from nflows.distributions.normal import StandardNormal
    from nflows.flows import Flow
    from nflows.transforms import CompositeTransform, PiecewiseRationalQuadraticCouplingTransform

    masks = [[(feature + number) % 2 for feature in range(FEATURES)] for number in range(TRANSFORMS)]
    couplings = [
        PiecewiseRationalQuadraticCouplingTransform(mask, PlainNetwork, num_bins=BINS, tails="linear", tail_bound=BOUND)
        for mask in masks
    ]
    flow = Flow(CompositeTransform(couplings), StandardNormal([FEATURES]))
    return Subject(list(flow.parameters()), lambda: flow.log_prob(x, c), lambda: flow.sample(1, c))


def normflows_subject(x: Tensor, c: Tensor) -> Subject:
    import normflows

    layers = [
        normflows.flows.CoupledRationalQuadraticSpline(
            FEATURES, 1, HIDDEN[0], CONDITIONS, num_bins=BINS, tail_bound=BOUND, reverse_mask=bool(number % 2)
        )
        for number in range(TRANSFORMS)
    ]
    flow = normflows.ConditionalNormalizingFlow(normflows.distributions.DiagGaussian(FEATURES, trainable=False), layers)
    rows = len(x)
    return Subject(list(flow.parameters()), lambda: flow.log_prob(x, c), lambda: flow.sample(rows, c))


def forward(subject: Subject) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            subject.log_prob()

    return run


def backward(subject: Subject) -> Callable[[], None]:
    def run() -> None:
        for parameter in subject.parameters:
            parameter.grad = None
        (-subject.log_prob().mean()).backward()

    return run


def sample(subject: Subject) -> Callable[[], None]:
    def run() -> None:
        with torch.no_grad():
            subject.sample()

    return run


MODES = {"forward": forward, "forward+backward": backward, "sampling": sample}


def compare(subjects: dict[str, Subject], repeats: int) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Milliseconds, and ratios to the fastest peer, per subject and mode."""
    times: dict[str, list[float]] = {name: [] for name in subjects}
    ratios: dict[str, list[float]] = {name: [] for name in subjects}
    for mode in MODES.values():
        seconds = interleaved({name: mode(subject) for name, subject in subjects.items()}, repeats)
        medians = {name: statistics.median(values) for name, values in seconds.items()}
        fastest = min((name for name in subjects if not name.startswith("sciflow")), key=medians.__getitem__)
        for name in subjects:
            times[name].append(medians[name] * 1e3)
            ratios[name].append(median_ratio(seconds[fastest], seconds[name]))
    return times, ratios


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="add sciflow with compile=True (about a minute of building)")
    parser.add_argument("--repeats", type=int, default=40)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, c = torch.randn(options.batch, FEATURES), torch.randn(options.batch, CONDITIONS)
    subjects = {"sciflow": sciflow_subject(x, c)}
    if options.compile:
        subjects["sciflow, compiled"] = sciflow_subject(x, c, compiled=True)
    subjects["sciflow's networks alone"] = networks_subject(x, c)
    subjects |= {"nflows": nflows_subject(x, c), "zuko": zuko_subject(x, c), "normflows": normflows_subject(x, c)}
    times, ratios = compare(subjects, options.repeats)
    memory = {name: peak_memory(backward(subject)) for name, subject in subjects.items()}
    lines = [
        "# Conditional neural spline flow",
        "",
        f"{machine()}. {FEATURES} features, {CONDITIONS} conditions, {TRANSFORMS} coupling transforms, {BINS} bins, hidden "
        f"{HIDDEN}, batch {options.batch}, float32, one thread. Milliseconds of processor time (median of {options.repeats} "
        "interleaved rounds) and, in brackets, how many times faster than the fastest peer (median over rounds). Memory: "
        "peak of tensor allocations of one forward+backward, from the torch profiler, weights and inputs not counted.",
        "",
        "| flow | parameters | forward | forward+backward | sampling | peak MiB (of nflows) |",
        "|---|---|---|---|---|---|",
    ]
    for name, subject in subjects.items():
        count = sum(parameter.numel() for parameter in subject.parameters)
        cells = " | ".join(f"{time_:.1f} ({ratio:.2f}x)" for time_, ratio in zip(times[name], ratios[name], strict=True))
        lines.append(f"| {name} | {count / 1e3:.0f}k | {cells} | {memory[name]:.1f} ({memory[name] / memory['nflows']:.2f}) |")
    for name, targets in TARGETS.items():
        if name in subjects:
            aims = " / ".join(f"{target}x" for target in targets)
            lines += ["", f"Aim for {name}: {aims}; memory at most 0.7 of nflows."]
    best = next(name for name in reversed(TARGETS) if name in subjects)
    alone, modes = "sciflow's networks alone", ("forward", "forward+backward", "sampling")
    shares = [f"{ceiling / own:.0%} of {mode}" for ceiling, own, mode in zip(times[alone], times[best], modes, strict=True)]
    limits = [f"{aim / ratio:.0%}" for aim, ratio in zip(TARGETS[best], ratios[alone], strict=True)]
    lines += [
        "",
        f"Where the time goes: the networks' matrix products, which no spline can avoid, are {', '.join(shares)} of {best}; "
        f"the aims are {', '.join(limits)} of what networks without any spline reach on this processor.",
    ]
    lines += ["", *two_threads(subjects, options.repeats), "", *reduced_precision(x, c, subjects["nflows"], options.repeats)]
    report("\n".join(lines) + "\n", options.output)


def two_threads(subjects: dict[str, Subject], repeats: int) -> list[str]:
    torch.set_num_threads(2)
    chosen = {name: subject for name, subject in subjects.items() if name in ("sciflow", "sciflow, compiled", "nflows")}
    head = "| flow | " + " | ".join(MODES) + " |"
    lines = ["Two threads, wall clock (median; sensitive to other processes):", "", head, "|---" * 4 + "|"]
    cells: dict[str, list[str]] = {name: [] for name in chosen}
    for mode in MODES.values():
        seconds = interleaved({name: mode(subject) for name, subject in chosen.items()}, repeats // 2, clock=time.perf_counter)
        for name in chosen:
            ratio = median_ratio(seconds["nflows"], seconds[name])
            cells[name].append(f"{statistics.median(seconds[name]) * 1e3:.1f} ({ratio:.2f}x)")
    torch.set_num_threads(1)
    return lines + [f"| {name} | " + " | ".join(row) + " |" for name, row in cells.items()]


def reduced_precision(x: Tensor, c: Tensor, peer: Subject, repeats: int) -> list[str]:
    flow = NeuralSplineFlow(FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN, bound=BOUND)
    with torch.no_grad():
        for name, parameter in flow.named_parameters():
            if "network" in name:
                parameter.mul_(100.0 if name.endswith(".2") else 2.0)  # a flow far from the identity, as after training
        exact = flow(c).log_prob(x)
        with torch.autocast("cpu", torch.bfloat16):
            rounded = flow(c).log_prob(x)
    error = (rounded.double() - exact.double()).abs()

    def low(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        def within() -> Tensor:
            with torch.autocast("cpu", torch.bfloat16):
                return run()

        return within

    plain = Subject(list(flow.parameters()), lambda: flow(c).log_prob(x), lambda: flow(c).sample())
    subjects = {"nflows": peer, "bf16": Subject(plain.parameters, low(plain.log_prob), low(plain.sample))}
    times, ratios = compare({"nflows": peer, "sciflow, networks in bf16": subjects["bf16"]}, repeats // 2)
    name = "sciflow, networks in bf16"
    cells = ", ".join(f"{mode} {t:.1f} ms ({r:.2f}x)" for mode, t, r in zip(MODES, times[name], ratios[name], strict=True))
    return [
        f"Networks in bfloat16 (autocast; splines in float32): {cells}. "
        f"Error of log_prob: rms {error.square().mean().sqrt():.3f}, worst {error.max():.2f} nats (weights scaled "
        f"so that log_prob spans {exact.std():.1f} nats rms): for training, "
        "never for importance weights."
    ]


if __name__ == "__main__":
    main()
