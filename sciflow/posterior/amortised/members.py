"""Several flows trained on the same simulations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sciflow.arguments import integer
from sciflow.flows import Flow
from sciflow.posterior.amortised.recipes import Recipe
from sciflow.posterior.amortised.scaling import rows_of
from sciflow.training import fit
from sciflow.training.data import split

__all__ = ["Members", "train_members"]


class Members(NamedTuple):
    """Flows, what `fit` said of each, their mean validation loss (None without validation), and processor seconds."""

    flows: list[Flow]
    records: list[Any]
    validation_loss: float | None
    seconds: float


def train_members(
    recipe: Recipe, build: Callable[[int], Flow], x: Tensor, condition: Any, *, validation: float, seed: int, progress: bool,
    checkpoint: str | Path | None, training: Mapping[str, Any] | None,
) -> Members:  # fmt: skip
    """`recipe.members` flows of x (N, D) given a condition of N rows.

    All hold out the same rows, `split(N, validation, seed=seed)`: no member has seen them, so that the mixture may be judged
    by them.

    Arguments:
        build: number of the member -> a fresh flow.
    """
    own, held = split(len(x), validation, seed=seed)
    flows, records = [], []
    began = time.process_time()
    for member in range(integer("members", recipe.members, 1, 1000)):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed + 7919 * member)
            flow = build(member)
        arguments = {**recipe.fit_arguments(flow.encoder), **(training or {})}
        if not len(held):
            arguments.pop("patience", None)
        folder = None if checkpoint is None else Path(checkpoint) / f"member-{member}"
        record = fit(
            flow, (x[own], rows_of(condition, own)), validation=(x[held], rows_of(condition, held)) if len(held) else 0.0,
            objective=recipe.objective(), seed=seed + member, progress=progress, checkpoint=folder, resume=folder is not None,
            **arguments,
        )  # fmt: skip
        flows.append(flow)
        records.append(record)
    losses = [record.best_validation_loss for record in records if record.best_validation_loss is not None]
    loss = sum(losses) / len(losses) if len(losses) == len(records) else None
    return Members(flows, records, loss, time.process_time() - began)
