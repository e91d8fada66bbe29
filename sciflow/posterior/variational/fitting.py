"""Training without data: the trainer of the library, whose batches the objective makes."""

from __future__ import annotations

import copy
import math
from typing import Any

import torch

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.posterior.target import Target, Unconstrained
from sciflow.posterior.variational.objective import EnergyObjective
from sciflow.posterior.variational.reverse_kl import ReverseKL
from sciflow.training import FitResult, TrainingDiverged, fit

__all__ = ["fit_energy"]

_EPOCH = 100  # steps


def fit_energy(
    flow: Flow, target: Target, objective: EnergyObjective | None = None, *, steps: int = 1000, batch: int = 512,
    seed: int = 0, **options: Any,
) -> FitResult:  # fmt: skip
    """Train a flow on an energy; its weights become the last (averaged) ones.

    `sciflow.training.fit` does it, on a placeholder data set: schedule, averaging, checkpoints, resume are its own. The
    flow is over the unconstrained coordinates of the target (`Unconstrained`), which are x itself where the support is R^n.

    Arguments:
        flow: without condition, in the target's dtype; near the target's place and scale at the start.
        objective: `ReverseKL` by default, or `FAB`. It is copied: what it counts is in the result's history.
        steps: optimiser steps, rounded up to whole epochs of 100 (one epoch if fewer).
        batch: draws per step.
        options: of `fit`: learning_rate, schedule, ema, clip, checkpoint, resume, callbacks, progress, ...

    Raises:
        UserError: flow and target do not fit, or no draw of a step has a finite energy.
        TrainingDiverged: see `fit`.

    >>> from sciflow.flows import MaskedAffineFlow
    >>> from sciflow.posterior import Energy
    >>> target = Energy(lambda x: 0.5 * (x - 1).square().sum(1), 2)
    >>> fit_energy(MaskedAffineFlow(2, transforms=2, hidden=(8,), kind="coupling"), target, steps=20, batch=64).steps
    20
    """
    objective = copy.deepcopy(ReverseKL() if objective is None else objective)
    steps, batch = integer("steps", steps, 1, 2**40), integer("batch", batch, 2, 2**40)
    space = Unconstrained(target)
    _check(flow, space)
    objective.bind(space, batch, seed)
    length = min(steps, _EPOCH)
    # rows that nobody looks at: the trainer counts them, the objective draws as many
    rows = torch.zeros(1, dtype=space.dtype).expand(length * batch, *space.event_shape)
    try:
        return fit(
            flow,
            rows,
            objective=objective,
            validation=0,
            epochs=math.ceil(steps / length),
            batch_size=batch,
            seed=seed,
            **options,
        )
    except TrainingDiverged as error:
        last = f"the last good checkpoint is {error.checkpoint}" if error.checkpoint else "there is no checkpoint"
        problem = str(error).split(" at step ")[0]
        error.args = (f"{problem} at step {error.step} (learning rate {error.learning_rate:.3g}); {last}; "
                      "lower the learning rate, set clip, or start the flow nearer to the target",)  # fmt: skip
        raise


def _check(flow: Flow, space: Unconstrained) -> None:
    if not isinstance(flow, Flow):
        raise UserError(f"the flow is a {type(flow).__name__}: give a sciflow flow")
    if flow.encoder.features:
        raise UserError(f"{type(flow).__name__} has a condition: an energy is one target, build the flow without")
    if flow.no_density is not None:
        raise UserError(f"{type(flow).__name__} has no density here: {flow.no_density}")
    if flow.event_shape != space.event_shape:
        raise UserError(
            f"the flow has event shape {tuple(flow.event_shape)}, the target {tuple(space.event_shape)} in unconstrained "
            "coordinates: they must agree"
        )
    dtype = flow.reference().dtype
    if dtype != space.dtype:
        raise UserError(
            f"the flow's weights are {dtype}, the target is {space.dtype}: flow.to({space.dtype}), or another target"
        )
