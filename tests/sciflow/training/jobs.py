"""Trainings that tests start as processes of their own: `python jobs.py killed|pair|diverged folder output`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sciflow.training import Batch, Constrained, Constraint, FitResult, MaximumLikelihood, TrainingDiverged, fit, weighted_mean

__all__ = ["Affine", "killed", "pair", "pair_data"]


class Affine(nn.Module):
    """x ~ N(W c + b, diag(sigma^2)) through a small network, so that there are matrices and biases."""

    def __init__(self, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 4)).to(dtype)

    def forward(self, condition: Tensor) -> torch.distributions.Distribution:
        loc, log_scale = self.network(condition).chunk(2, -1)
        return torch.distributions.Independent(torch.distributions.Normal(loc, log_scale.clamp(-3, 3).exp()), 1)


class Noisy(MaximumLikelihood):
    """Smears the data with torch's own generator: a resumed training has to continue its stream."""

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        return super().forward(flow, batch._replace(x=batch.x + 0.1 * torch.randn_like(batch.x)))


def spread(flow: nn.Module, batch: Batch) -> Tensor:
    return weighted_mean((flow(batch.condition).mean - batch.x).square().sum(-1), batch)


def rows(count: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    condition = torch.randn(count, 2, generator=generator, dtype=dtype)
    x = condition.sin() + 0.3 * torch.randn(count, 2, generator=generator, dtype=dtype)
    return x, condition


def write(flow: nn.Module, result: FitResult, path: str) -> None:
    history = [{key: value for key, value in record.items() if key != "seconds"} for record in result.history]
    numbers = {"history": history, "best_epoch": result.best_epoch, "reason": result.reason, "steps": result.steps}
    save_file(dict(flow.state_dict()), path, metadata={"result": json.dumps(numbers)})


def killed(folder: str, output: str) -> None:
    """Constrained, with EMA, schedule, clipping and early stopping; resumes whatever the folder holds."""
    torch.manual_seed(len(output))  # different initial weights in every process: a resume has to replace them
    if not Path(folder).exists():
        torch.manual_seed(0)
    flow = Affine()
    objective = Constrained(Noisy(), [Constraint.maximum(spread, 0.3, name="spread", scale=0.3)])
    result = fit(
        flow, rows(3000, torch.float32), objective=objective, epochs=30, batch_size=64, learning_rate=3e-2, schedule="onecycle",
        weight_decay=0.01, clip=1.0, ema=0.9, patience=3, seed=3, checkpoint=folder, checkpoint_seconds=0.05, resume=True,
    )  # fmt: skip
    write(flow, result, output)


def pair_data() -> dict[str, Any]:
    """Weights differ from row to row, so that the shares of two processes have different sums."""
    x, condition = rows(321, torch.float64)
    return {"x": x, "condition": condition, "weight": torch.linspace(0.01, 3.0, len(x), dtype=torch.float64) ** 2}


def pair(folder: str, output: str, *, epochs: int = 3, fabric: Any = None) -> FitResult:
    """51 float64 steps under a constraint, on one process or on those of the fabric."""
    torch.manual_seed(0)
    flow = Affine(torch.float64)
    objective = Constrained(MaximumLikelihood(), [Constraint.maximum(spread, 0.1, name="spread", scale=1.0)])
    result = fit(
        flow, pair_data(), objective=objective, validation=0.2, epochs=epochs, batch_size=16, learning_rate=1e-2, clip=0.5,
        ema=0.9, schedule="constant", checkpoint=folder, resume=True, fabric=fabric,
    )  # fmt: skip
    if fabric is None or fabric.global_rank == 0:
        write(flow, result, output)
    return result


class Poisoned(MaximumLikelihood):
    """Not finite for event 200 after some steps: only one of two processes sees it."""

    steps = 0

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        self.steps += 1
        assert batch.index is not None
        return super().forward(flow, batch) + torch.where(batch.index == 200, torch.nan if self.steps > 17 else 0.0, 0.0)


def diverged(output: str, fabric: Any) -> None:
    """Every process has to tell the same rows, and none may wait for ever."""
    flow = Affine(torch.float64)
    try:
        fit(flow, pair_data(), objective=Poisoned(), validation=0, epochs=3, batch_size=16, fabric=fabric)
    except TrainingDiverged as error:
        Path(f"{output}.{fabric.global_rank}").write_text(json.dumps(error.rows))


def main() -> None:
    torch.set_num_threads(1)
    job, folder, output = sys.argv[1:4]
    if job == "killed":
        killed(folder, output)
        return
    from lightning_fabric import Fabric  # started with the variables that torchrun sets

    fabric = Fabric(accelerator="cpu", strategy="ddp", devices=2)
    fabric.launch()
    if job == "diverged":
        diverged(output, fabric)
    else:
        pair(folder, output, fabric=fabric)
    # a process that ends while gloo's threads run is aborted now and then
    fabric.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
