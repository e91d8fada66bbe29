"""The loss on a fixed set of rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from sciflow.training.data import share
from sciflow.training.loss import LossModule
from sciflow.training.objective import Batch
from sciflow.training.processes import process_rank, sum_over_processes

__all__ = ["Validation", "validate"]


class Validation(NamedTuple):
    """The weighted mean loss, what the objective measures besides, and this process's rows without a finite loss."""

    loss: float
    measured: dict[str, float]
    bad: Tensor


@torch.no_grad()
def validate(loss: LossModule, data: Batch, batch_size: int, device: torch.device, seed: int) -> Validation:
    """Weighted means over all rows and processes; random objectives see the same noise in every epoch."""
    totals: dict[str, Tensor] = {}
    bad = []
    loss.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed + process_rank())
        for rows in torch.arange(len(data.x), device=data.x.device).split(batch_size):
            own, batch = share(data, rows, device)
            total, weight, _ = loss(batch)
            bad.append(own[~torch.isfinite(loss.losses.to(own.device))[: len(own)]])
            means = {f"measured {name}": value * weight for name, value in loss.objective.measure(loss.flow, batch).items()}
            for name, value in {"loss": total, "weight": weight, **means}.items():
                # the stand-in of a process without rows adds nothing, not even its NaN
                totals[name] = totals.get(name, 0.0) + (value.double() if len(own) else torch.zeros_like(value).double())
    sums = sum_over_processes(torch.stack(list(totals.values())))
    found = dict(zip(totals, (sums / sums[1]).tolist(), strict=True))
    measured = {name.removeprefix("measured "): value for name, value in found.items() if name.startswith("measured ")}
    return Validation(found["loss"], measured, torch.cat(bad))
