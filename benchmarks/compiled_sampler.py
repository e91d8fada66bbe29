"""What torch.compile does for the fixed-step sampler and for the exact trace.

    python benchmarks/compiled_sampler.py [--repeats 15]

Network 33-256-256-256-32, ten midpoint steps, float32, one thread. Writes compiled_sampler.md.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from timing import interleaved, machine, median_ratio, report
from torch import Tensor

from sciflow.transport.divergence import Exact
from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers import FixedStep

FEATURES = 32


def row(name: str, plain: Callable[[Tensor], Tensor], x: Tensor, repeats: int) -> str:
    torch._dynamo.reset()
    fast = torch.compile(plain, fullgraph=True)
    start = time.perf_counter()
    fast(x)
    took = time.perf_counter() - start
    seconds = interleaved({"eager": lambda: plain(x), "compiled": lambda: fast(x)}, repeats, warm=3)
    eager, quick = (statistics.median(seconds[key]) * 1e3 for key in ("eager", "compiled"))
    ratio = median_ratio(seconds["eager"], seconds["compiled"])
    error = float((fast(x) - plain(x)).abs().max())
    return f"| {name} | {len(x)} | {eager:.2f} | {quick:.2f} | {ratio:.2f}x | {took:.0f} | {error:.0e} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    stepper, divergence = FixedStep(options.steps), Exact()
    lines = [
        "# torch.compile",
        "",
        f"{machine()}. {options.steps} midpoint steps compiled as one graph without a break, {FEATURES} features, hidden as "
        "said, float32, one thread; milliseconds of processor time.",
        "",
        "| sampler | batch | eager ms | compiled ms | faster | seconds to compile | largest difference |",
        "|---|---|---|---|---|---|---|",
    ]
    with torch.no_grad():
        for batch in (1, 32, 1024):
            field = TransportFlow(FEATURES, network={"hidden": (256, 256, 256)}).field()
            x = torch.randn(batch, FEATURES)
            lines.append(row("draws, (256, 256, 256)", lambda x, f=field: stepper.solve(f, x, 0.0, 1.0).x, x, options.repeats))
        field = TransportFlow(FEATURES, network={"hidden": (256, 256)}).field()
        x = torch.randn(256, FEATURES)

        def density(x: Tensor) -> Tensor:
            found = stepper.solve(field, x, 0.0, 1.0, divergence=divergence).log_det
            assert found is not None
            return found.value

        lines.append(row("exact log-determinant, (256, 256)", density, x, options.repeats))
    report("\n".join(lines) + "\n", options.output)


if __name__ == "__main__":
    main()
