"""One training of a correction: its settings, its weights at the start, the region it was trained in."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from sciflow.training import Batch, FitResult, Objective, fit
from sciflow_physics.model.sample import Sample
from sciflow_physics.model.transport import Transport

__all__ = ["Training", "initialise", "learn_support", "train"]


class Training(NamedTuple):
    """The numbers of one training, see `fit_correction`."""

    epochs: int
    member_epochs: int
    batch_size: int
    learning_rate: float
    patience: int | None
    weight_decay: float
    ema: float | None
    validation: float
    progress: bool
    checkpoint: Path | None


def train(
    flow: torch.nn.Module, batch: Batch, held: torch.Tensor, options: Training, epochs: int, seed: int,
    objective: Objective | None, name: str,
) -> FitResult:  # fmt: skip
    assert batch.weight is not None
    used = batch.weight > 0

    def part(rows: torch.Tensor) -> Batch:
        mask = None if batch.mask is None else batch.mask[rows]
        assert batch.weight is not None
        index = None if batch.index is None else batch.index[rows]
        return Batch(batch.x[rows], batch.condition[rows], batch.weight[rows], mask, index)

    parts = part(used & ~held), part(used & held)
    return fit(
        flow, parts[0], validation=parts[1] if len(parts[1].x) else 0.0, epochs=epochs, batch_size=options.batch_size,
        learning_rate=options.learning_rate, patience=options.patience, weight_decay=options.weight_decay, ema=options.ema,
        seed=seed, progress=options.progress, objective=objective,
        checkpoint=None if options.checkpoint is None else options.checkpoint / name, resume=options.checkpoint is not None,
    )  # fmt: skip


def initialise(flow: torch.nn.Module, seed: int) -> None:
    """Draw the weights anew, so that a correction depends on its seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for module in flow.modules():
            reset = getattr(module, "reset_parameters", None)
            if callable(reset):
                reset()


@torch.no_grad()
def learn_support(model: Transport, z: torch.Tensor, both: Sample, mask: torch.Tensor, rows: int) -> None:
    conditions, _ = model.conditions(model.fold_signs(torch.from_numpy(both.conditions)))
    sim, data = conditions[:rows], conditions[rows:]
    size, infinity = model.features.features, float("inf")
    present = torch.where(mask[:rows], z[:rows], infinity), torch.where(mask[:rows], z[:rows], -infinity)
    # a little room beyond the outermost training event, in standard deviations
    model.lower.copy_(torch.cat([present[0].amin(0) - 0.1, torch.maximum(sim.amin(0), data.amin(0)) - 0.05]))
    model.upper.copy_(torch.cat([present[1].amax(0) + 0.1, torch.minimum(sim.amax(0), data.amax(0)) + 0.05]))
    # the whole band of a point mass is inside, wherever its random numbers fell
    masses = model.features.mass == model.features.mass
    model.lower[:size] = torch.where(masses, model.lower[:size] - 1.0, model.lower[:size])
    category = torch.from_numpy(both.category[:rows])
    context, _ = model.context(torch.from_numpy(both.conditions[:rows]), category)
    parts = zip(*(whole.split(8192) for whole in (z[:rows], context, category, mask[:rows])), strict=True)
    densities = [
        model.map(0, part, given, codes, torch.zeros_like(part), there)[1].min() for part, given, codes, there in parts
    ]
    model.least.fill_(float(torch.stack(densities).min()) - 1e-3)
