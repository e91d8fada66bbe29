"""Morphing one sample into another: to the latent under one condition, back under another, against zuko.

    python benchmarks/correction_apply.py [--compile] [--repeats 20] [--rows 8192]

16 features, 5 conditions and the switch, 6 coupling transforms, 8 bins, hidden (128, 128), float32, one thread. Both
libraries in turn; processor time. Writes correction_apply.md.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
import zuko
from timing import interleaved, machine, median_ratio, report
from torch import Tensor

from sciflow.flows import NeuralSplineFlow

FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN = 16, 6, 6, 8, (128, 128)


def sciflow_apply(x: Tensor, simulation: Tensor, data: Tensor, *, compiled: bool) -> Callable[[], Tensor]:
    flow = NeuralSplineFlow(FEATURES, CONDITIONS, TRANSFORMS, BINS, HIDDEN, compile=compiled)

    def run() -> Tensor:
        with torch.no_grad():
            return flow(data).data(flow(simulation).latent(x))

    return run


def zuko_apply(x: Tensor, simulation: Tensor, data: Tensor) -> Callable[[], Tensor]:
    flow = zuko.flows.NSF(FEATURES, CONDITIONS, bins=BINS, transforms=TRANSFORMS, hidden_features=HIDDEN, passes=2)

    def run() -> Tensor:
        with torch.no_grad():
            return flow(data).transform.inv(flow(simulation).transform(x))

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="add sciflow with compile=True")
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--rows", type=int, default=8192)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x, common = torch.randn(options.rows, FEATURES), torch.randn(options.rows, CONDITIONS - 1)
    simulation, data = (torch.cat((common, torch.full((options.rows, 1), switch)), 1) for switch in (0.0, 1.0))
    runs = {"sciflow": sciflow_apply(x, simulation, data, compiled=False)}
    if options.compile:
        runs["sciflow, compiled"] = sciflow_apply(x, simulation, data, compiled=True)
    runs["zuko"] = zuko_apply(x, simulation, data)
    seconds = interleaved(runs, options.repeats)
    lines = [
        "# Applying a correction",
        "",
        f"{machine()}. {FEATURES} features, {CONDITIONS - 1} conditions and a switch, {TRANSFORMS} coupling transforms, {BINS} "
        f"bins, hidden {HIDDEN}, {options.rows} rows to the latent and back under another switch, float32, one thread, "
        f"processor time, median of {options.repeats} interleaved rounds. Aim: 3x.",
        "",
        "| flow | rows per second | ratio to zuko |",
        "|---|---|---|",
    ]
    for name, values in seconds.items():
        rate = options.rows / statistics.median(values)
        lines.append(f"| {name} | {rate:,.0f} | {median_ratio(seconds['zuko'], values):.2f}x |")
    report("\n".join(lines) + "\n", options.output)


if __name__ == "__main__":
    main()
