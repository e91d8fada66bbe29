"""What `sciflow.fit` costs over a bare PyTorch loop with the same batches, optimiser, clipping and schedule.

    python benchmarks/fit_overhead.py

One thread; both run in turn, an epoch each, and the medians and minima are compared. The bare loop neither averages
weights nor validates nor looks for NaN; `fit` is timed without the first two.
"""

from __future__ import annotations

import math
import statistics
import time

import torch
import zuko
from torch import Tensor, nn

import sciflow
from sciflow.flows import NeuralSplineFlow


def bare(flow: nn.Module, x: Tensor, condition: Tensor, batch_size: int, seed: int) -> float:
    """Seconds of one epoch."""
    flow.train()
    optimiser = torch.optim.AdamW(flow.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    began = time.perf_counter()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))
    batches = order.split(batch_size)
    total = 0.0
    for step, rows in enumerate(batches):
        for group in optimiser.param_groups:
            group["lr"] = 1e-3 * 0.5 * (1 + math.cos(math.pi * step / len(batches)))
        loss = -flow(condition[rows]).log_prob(x[rows]).mean()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(flow.parameters(), 10.0)
        optimiser.step()
        total += loss.item()
    return time.perf_counter() - began


def fitted(flow: nn.Module, x: Tensor, condition: Tensor, batch_size: int, seed: int) -> float:
    """Seconds of one epoch: what `fit` does before the first step is left out, as it is done once per training."""
    result = sciflow.fit(flow, (x, condition), validation=0, epochs=1, batch_size=batch_size, seed=seed, progress=False)
    return result.seconds


def main() -> None:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    cases = [
        ("sciflow coupling, batch 4096", NeuralSplineFlow(8, 8, transforms=5, bins=8, hidden=(128, 128)), 4096, 3 * 4096),
        ("sciflow coupling, batch 512", NeuralSplineFlow(8, 8, transforms=5, bins=8, hidden=(128, 128)), 512, 10 * 512),
        ("zuko NSF, batch 1024", zuko.flows.NSF(8, 8, transforms=3, hidden_features=(64, 64)), 1024, 10 * 1024),
        ("zuko MAF, batch 256 (tiny)", zuko.flows.MAF(2, 8, transforms=1, hidden_features=(32,)), 256, 100 * 256),
    ]
    print(f"{'case':32s} {'bare ms/step':>13s} {'fit ms/step':>12s} {'median ratio':>13s} {'minimum ratio':>14s}")  # noqa: T201
    for name, flow, batch_size, rows in cases:
        features = 2 if "MAF" in name else 8
        x, condition = torch.randn(rows, features), torch.randn(rows, 8)
        times: dict[str, list[float]] = {"bare": [], "fit": []}
        for repetition in range(8):
            times["bare"].append(bare(flow, x, condition, batch_size, repetition))
            times["fit"].append(fitted(flow, x, condition, batch_size, repetition))
        own, reference = times["fit"][1:], times["bare"][1:]  # the first ones warm up
        ratio, least = statistics.median(own) / statistics.median(reference), min(own) / min(reference)
        steps = rows / batch_size / 1e3
        print(f"{name:32s} {min(reference) / steps:13.2f} {min(own) / steps:12.2f} {ratio:13.3f} {least:14.3f}")  # noqa: T201


if __name__ == "__main__":
    main()
