"""Log-densities of continuous flows: exact and stochastic traces against zuko's CNF at equal tolerance.

    python benchmarks/likelihood.py [--repeats 7]

The same network (its weights copied) in both libraries, float32, one thread; events of 32 features and 1x8x8 images.
Errors are against a fine solution in float64. Memory is the peak of tensor allocations per example, with gradients.
Writes likelihood.md.
"""

from __future__ import annotations

import argparse
import copy
import math
import statistics
from pathlib import Path
from typing import Any

import torch
from timing import interleaved, machine, median_ratio, peak_memory, report
from torch import Tensor, nn

from sciflow.networks.time_network import TimeMLP
from sciflow.transport.divergence import Divergence, Exact, Hutchinson
from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers import Adaptive, Adjoint, FixedStep, Stepper

TOLERANCE = 1e-4
EVENTS = {"32 features": ((32,), 128), "1x8x8 image": ((1, 8, 8), 32)}


class ByAutograd(TimeMLP):
    """The same network without a trace of its own."""

    output_and_divergence = None  # type: ignore[assignment]


def zuko_flow(network: TimeMLP) -> Any:
    """zuko's CNF around the same layers: its time features replaced by the plain time."""
    import zuko

    class Net(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            # zuko hands over cos(k pi t), sin(k pi t) and x; the wrapper below hands over t itself
            h = inputs
            for layer in network.layers[:-1]:
                h = network.activate(layer(h))
            return network.layers[-1](h)

    size = math.prod(network.event_shape)

    def log_prob(x: Tensor, *, exact: bool) -> Tensor:
        net = Net()

        def velocity(t: Tensor, x: Tensor) -> Tensor:
            return net(torch.cat((x, t.expand(x.shape[0], 1)), 1))

        transform = zuko.transforms.FreeFormJacobianTransform(
            f=velocity, t0=1.0, t1=0.0, phi=tuple(network.parameters()), atol=TOLERANCE / 10, rtol=TOLERANCE, exact=exact
        )
        z, ladj = transform.call_and_ladj(x.flatten(1))
        return -0.5 * z.square().sum(1) - 0.5 * size * math.log(2 * math.pi) + ladj

    return log_prob


def flow_with(network: TimeMLP, stepper: Stepper, divergence: Divergence, *, hand: bool) -> TransportFlow:
    if not hand:
        network = copy.copy(network)
        network.__class__ = ByAutograd
    return TransportFlow(tuple(network.event_shape), network=network, stepper=stepper, divergence=divergence)


def table(event: str, hidden: tuple[int, ...], repeats: int) -> list[str]:
    shape, batch = EVENTS[event]
    torch.manual_seed(0)
    network = TimeMLP(shape, hidden=hidden)
    with torch.no_grad():
        for layer in network.layers:
            layer.weight.mul_(2.0)
    x = torch.randn(batch, *shape)
    fine = TransportFlow(shape, network=copy.deepcopy(network).double(), stepper=FixedStep(40, method="dopri5"))
    with torch.no_grad():
        exact = fine().log_prob(x.double())
    adaptive, fixed = Adaptive(TOLERANCE), FixedStep(5, method="dopri5")
    flows = {
        "sciflow exact": flow_with(network, adaptive, Exact(), hand=True),
        "sciflow exact, 5 dopri5 steps": flow_with(network, fixed, Exact(), hand=True),
        "sciflow exact, vector-Jacobian products": flow_with(network, adaptive, Exact(), hand=False),
        "sciflow exact, adjoint gradients": flow_with(network, Adjoint(adaptive), Exact(), hand=True),
        "sciflow Hutchinson, 1 probe": flow_with(network, adaptive, Hutchinson(1), hand=True),
        "sciflow Hutchinson, 8 probes": flow_with(network, adaptive, Hutchinson(8), hand=True),
    }
    calls: dict[str, Any] = {name: (lambda flow=flow: flow().log_prob(x)) for name, flow in flows.items()}
    peer = zuko_flow(network)
    calls |= {"zuko exact": lambda: peer(x, exact=True), "zuko Hutchinson": lambda: peer(x, exact=False)}

    def forward(call: Any) -> Any:
        def run() -> Tensor:
            with torch.no_grad():
                return call()

        return run

    def training(call: Any) -> Any:
        def run() -> None:
            network.zero_grad(set_to_none=True)
            call().mean().backward()

        return run

    seconds = interleaved({name: forward(call) for name, call in calls.items()}, repeats, warm=1)
    trained = interleaved({name: training(call) for name, call in calls.items()}, max(3, repeats // 2), warm=1)
    lines = [
        "", f"## {event}, hidden {hidden}, batch {batch}", "",
        "| log_prob | error, nats | standard error | evaluations | ms | of zuko's | training, ms | of zuko's | KiB/example |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for name, call in calls.items():
        error = float((forward(call)().double() - exact).square().mean().sqrt())
        reference = "zuko Hutchinson" if "Hutchinson" in name else "zuko exact"
        spread = evaluations = ""
        if name in flows:
            with torch.no_grad():
                solution = flows[name].solve(x, None, None, 1.0, 0.0, density=True)
                found = flows[name].log_density(x).standard_error
            evaluations = f"{float(torch.as_tensor(solution.evaluations).double().mean()):.0f}"
            spread = "" if found is None else f"{float(found.square().mean().sqrt()):.2g}"
        cells = []
        for times in (seconds, trained):
            cells += [f"{statistics.median(times[name]) * 1e3:.1f}", f"{median_ratio(times[name], times[reference]):.2f}"]
        memory = peak_memory(training(call)) * 1024 / batch
        lines.append(f"| {name} | {error:.1e} | {spread} | {evaluations} | {' | '.join(cells)} | {memory:.0f} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    torch.set_num_threads(1)
    lines = [
        "# Log-densities of continuous flows",
        "",
        f"{machine()}. Relative tolerance {TOLERANCE:g}, absolute a tenth of it, in both libraries; float32, one thread. "
        f"Milliseconds of processor time, medians of {options.repeats} interleaved rounds; ratios are medians over rounds, "
        "of the exact or the stochastic trace of zuko. sciflow's exact trace takes products of the weight matrices where the "
        "network is a `TimeMLP`, else vector-Jacobian products. Memory: peak of tensor allocations of one training step.",
    ]
    for event in EVENTS:
        for hidden in ((128, 128), (128, 128, 128)):
            lines += table(event, hidden, options.repeats)
    report("\n".join(lines) + "\n", options.output)


if __name__ == "__main__":
    main()
