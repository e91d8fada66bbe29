"""The price of path gradients: reverse KL with plain gradients, with the recursion, and with a second pass.

    python benchmarks/path_gradients.py [--repeats 41]

One gradient of the reverse divergence of a many-well energy (its gradient included, no optimiser), float32, one thread, all
three in turn; times are processor time, ratios medians over rounds. Variance: of the gradient at the end of a training, where
path gradients die out and plain ones do not. Writes path_gradients.md.
"""

from __future__ import annotations

import argparse
import os
import statistics
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"

import torch
from timing import interleaved, machine, median_ratio, report

from sciflow.flows import Flow, MaskedAffineFlow, NeuralSplineFlow
from sciflow.posterior import Energy, Target
from sciflow.posterior.problems import ManyWell
from sciflow.posterior.target import value_and_gradient
from sciflow.posterior.variational import ReverseKL, carried_twice, fit_energy
from sciflow.posterior.variational.path import path_loss
from sciflow.training import Batch
from sciflow.transport import TransportFlow
from sciflow.transport.steppers import FixedStep

SHAPES = ((8, 512, (64, 64)), (8, 512, (128, 128)), (8, 2048, (128, 128)), (32, 1024, (128, 128)), (64, 256, (256, 256)))


def gradient(flow: Flow, objective: ReverseKL, rows: int) -> None:
    flow.zero_grad(set_to_none=True)
    objective(flow, Batch(torch.zeros(rows, 1))).mean().backward()


def second_pass(flow: Flow, target: Target, rows: int) -> None:
    """The same gradient without recursion."""
    flow.zero_grad(set_to_none=True)
    z = flow.base.rsample(rows, dtype=flow.reference().dtype)
    log_base, score = value_and_gradient(flow.base.log_prob, z)
    x, ladj, slope = carried_twice(flow, z, score)
    value, force = target.value_and_gradient(x)
    path_loss(log_base - ladj - value, x, slope - force).mean().backward()


def bound(target: Target, *, path: bool) -> ReverseKL:
    objective = ReverseKL(path=path)
    objective.bind(target, 0, 0)
    return objective


def timed(flow: Flow, features: int, rows: int, repeats: int) -> list[str]:
    target = ManyWell(features, dtype=torch.float32)
    plain, path = bound(target, path=False), bound(target, path=True)
    seconds = interleaved(
        {"plain": lambda: gradient(flow, plain, rows), "path": lambda: gradient(flow, path, rows),
         "second pass": lambda: second_pass(flow, target, rows)}, repeats,
    )  # fmt: skip
    ratios = [median_ratio(seconds[name], seconds["plain"]) for name in ("path", "second pass")]
    return [f"{1e3 * statistics.median(seconds['plain']):.1f}", *(f"{ratio:.2f}" for ratio in ratios)]


def scatter(path: bool) -> list[str]:
    """A flow that can be exact, after training: the loss above its minimum, and the scatter of its gradient."""
    torch.manual_seed(0)
    flow = MaskedAffineFlow(8, transforms=4, hidden=(32,), kind="coupling", mixing="lu").double()
    factor = torch.eye(8, dtype=torch.float64) + 0.3 * torch.randn(8, 8, dtype=torch.float64).tril(-1)
    precision = torch.linalg.inv(factor @ factor.T)
    target = Energy(
        lambda x: 0.5 * (x @ precision * x).sum(1) + 4 * torch.log(torch.tensor(2 * torch.pi)), 8, dtype=torch.float64
    )
    fit_energy(flow, target, ReverseKL(path=path), steps=500, batch=128, learning_rate=5e-3, progress=False)
    found, losses = [], []
    for _ in range(50):
        objective = bound(target, path=path)
        flow.zero_grad(set_to_none=True)
        loss = objective(flow, Batch(torch.zeros(128, 1))).mean()
        loss.backward()
        losses.append(float(loss.detach()))
        found.append(torch.cat([p.grad.flatten() for p in flow.parameters() if p.grad is not None]))
    return [f"{statistics.fmean(losses):.1e}", f"{float(torch.stack(found).std(0).norm()):.1e}"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=41)
    repeats = parser.parse_args().repeats
    torch.set_num_threads(1)
    head = "| flow | D | rows | hidden | plain, ms | path / plain | second pass / plain |"
    lines = ["# Path gradients", "", machine(), "", head, "|---|---|---|---|---|---|---|"]
    for features, rows, hidden in SHAPES:
        for name, kind in (("spline coupling", NeuralSplineFlow), ("affine coupling", MaskedAffineFlow)):
            flow = kind(features, transforms=6, hidden=hidden, kind="coupling")
            cells = timed(flow, features, rows, repeats)
            lines.append(f"| {name}, 6 | {features} | {rows} | {'-'.join(map(str, hidden))} | {' | '.join(cells)} |")
    velocity = TransportFlow(8, network={"hidden": (64, 64)}, stepper=FixedStep(8, method="rk4"))
    cells = timed(velocity, 8, 256, max(3, repeats // 4))
    lines.append(f"| velocity, 8 rk4 steps | 8 | 256 | 64-64 | {' | '.join(cells)} |")
    lines += ["", "At most 1.5 is demanded of coupling flows.", "",
              "After 500 steps on a normal distribution in 8 dimensions, which the flow can fit exactly:", "",
              "| gradient of 128 rows | KL(q, p) | its scatter (norm of standard deviations) |", "|---|---|---|"]  # fmt: skip
    for path in (False, True):
        lines.append(f"| {'path' if path else 'plain'} | {' | '.join(scatter(path))} |")
    report("\n".join([*lines, "", __doc__ or ""]), Path(__file__).with_suffix(".md"))


if __name__ == "__main__":
    main()
