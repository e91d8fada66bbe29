"""The one function that trains."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.recorded import configuration
from sciflow.strict_json import dumps
from sciflow.training import checkpoint as checkpoints
from sciflow.training.average import MovingAverage
from sciflow.training.data import Names, as_batch, check, fingerprint, map_tensors, split, take
from sciflow.training.loss import LossModule
from sciflow.training.objective import Batch, MaximumLikelihood, Objective
from sciflow.training.processes import process_count, process_rank
from sciflow.training.result import FitResult
from sciflow.training.schedule import Schedule
from sciflow.training.settings import PRECISIONS, Settings, check_arguments
from sciflow.training.trainer import Trainer

__all__ = ["fit"]

_STRATEGIES = ("SingleDeviceStrategy", "DDPStrategy")


def fit(
    flow: nn.Module,
    data: Any,
    *,
    objective: Objective | None = None,
    validation: Any = 0.1,
    groups: Any = None,
    names: Names = None,
    epochs: int = 100,
    batch_size: int = 1024,
    learning_rate: float = 1e-3,
    schedule: str | Callable[[float], float] = "cosine",
    warmup: int = 0,
    weight_decay: float = 0.0,
    clip: float | None = 10.0,
    ema: float | None = None,
    precision: str | None = None,
    seed: int = 0,
    patience: int | None = None,
    drop_last: bool = False,
    checkpoint: str | Path | None = None,
    checkpoint_seconds: float | None = 60.0,
    checkpoint_epochs: int | None = 1,
    resume: bool = False,
    fabric: Any = None,
    progress: bool = True,
    callbacks: Sequence[Callable[[dict[str, Any]], Any]] = (),
) -> FitResult:
    r"""Train a flow; afterwards it has its best (averaged) weights and is in eval mode.

    Each step minimises sum_i w_i loss_i / sum_i w_i over a batch (plus the objective's penalty) with AdamW
    (Decoupled weight decay regularization, 2019, arXiv 1711.05101). If any weight is negative, the denominator is the
    number of rows times the mean weight of all rows instead, since that of a batch may vanish.

    Arguments:
        flow: any module with flow(condition) -> distribution; zuko flows too. The arithmetic is in its dtype.
        data: x, (x, condition, weight, mask, index, source), a dict with those names or a `Batch`; rows first; conditions may
            be nested dicts. Rows may lie on the CPU or on the flow's device; those of weight 0 are left out.
        objective: what is learned; maximum likelihood by default.
        validation: the fraction of rows held out, or a data set; 0 for none (then the last weights are kept).
        groups: (N,) integers; rows of one group (one event) are held out together.
        names: of the columns of x, or a dict from "x", "condition", "condition.<entry>" to names; for messages.
        batch_size: rows per step over all processes; the last batch of an epoch is smaller (or dropped: `drop_last`).
        schedule: "cosine", "onecycle", "constant", "plateau" or a function of the fraction done; see `Schedule`.
        warmup: steps of linearly rising learning rate.
        weight_decay: for weight matrices; never for biases and scales.
        clip: largest norm of the gradient; None for no limit.
        ema: decay of the moving average of the weights; it is what is validated and kept.
        precision: None for the flow's own, "float32"/"float64" to insist on it, "bf16" for bfloat16 autocast.
        patience: stop after this many epochs in a row without a better validation.
        checkpoint: folder; written at the end of every `checkpoint_epochs` epochs, and every `checkpoint_seconds`.
        resume: go on from the folder's checkpoint; starts afresh if there is none. On one CPU the weights are bit for
            bit those of an uninterrupted training.
        fabric: a launched `lightning_fabric.Fabric` for several processes (`torchrun`); precision and batches are as
            said here, not the plugin's.
        callbacks: called with each epoch's record (a dict, see `FitResult`); a true answer ends the training.

    Raises:
        UserError: the data, weights or arguments cannot be trained on, or a checkpoint belongs to other ones.
        TrainingDiverged: the loss, the gradient or the weights are not finite any more; the flow is left with its
            best weights.

    >>> import zuko
    >>> from sciflow.training import fit
    >>> x = torch.randn(256, 2, generator=torch.Generator().manual_seed(0)) * 3 + 1
    >>> fit(zuko.flows.GF(2, transforms=1), x, epochs=2, batch_size=64).steps
    8
    """
    objective = MaximumLikelihood() if objective is None else objective
    check_arguments(
        epochs, batch_size, learning_rate, weight_decay, clip, patience, precision, resume, checkpoint, warmup,
        checkpoint_epochs,
    )  # fmt: skip
    seed = integer("seed", seed, 0, 2**62)
    reference = next((p for p in flow.parameters() if p.requires_grad), None)
    if reference is None:
        raise UserError(f"{type(flow).__name__} has no parameters to train")
    if precision in ("float32", "float64") and reference.dtype != PRECISIONS[precision]:
        raise UserError(f"precision={precision!r} but the flow's weights are {reference.dtype}: convert the flow first")
    if precision == "bf16" and reference.dtype != torch.float32:
        raise UserError(f"precision='bf16' but the flow's weights are {reference.dtype}: autocast needs a float32 flow")
    device = _device(fabric, reference.device)
    if device.type == "meta":
        raise UserError(f"{type(flow).__name__} is on the meta device, its weights have no values: build it on a real one")
    flow.to(device)
    objective.to(device)

    whole = _enter(flow, data, names, reference.dtype)
    if isinstance(validation, (int, float)):
        group_numbers = None if groups is None else torch.as_tensor(groups)
        own, held = split(len(whole.x), float(validation), seed=seed, groups=group_numbers)
        training, held_out = (take(whole, rows.to(whole.x.device)) if len(rows) else None for rows in (own, held))
        rows = (own, held)
    else:
        if groups is not None:
            raise UserError("groups say which rows are held out together, but validation is a data set: give one of the two")
        training, held_out = whole, _enter(flow, validation, names, reference.dtype)
        rows = (torch.arange(len(training.x)), torch.arange(len(held_out.x)))
    for part in (training, held_out):
        if part is not None:
            check(part, names)
    assert training is not None
    training, counted = _counting(training, rows[0])
    held_out, held_counted = (None, rows[1]) if held_out is None else _counting(held_out, rows[1])
    rows = (counted, held_counted)
    if patience is not None and held_out is None:
        raise UserError(f"patience={patience} needs a validation set to watch, but validation=0: hold rows out or omit it")

    arguments: dict[str, Any] = {}
    if checkpoint is not None:
        arguments = {
            "epochs": epochs, "batch_size": batch_size, "learning_rate": learning_rate,
            "schedule": schedule if isinstance(schedule, str) else getattr(schedule, "__qualname__", type(schedule).__name__),
            "warmup": warmup, "weight_decay": weight_decay, "clip": clip, "ema": ema, "precision": precision, "seed": seed,
            "patience": patience, "drop_last": drop_last,
            "objective": f"{type(objective).__qualname__}({objective.extra_repr()})",
            "flow": _description(flow, reference.dtype),
            "data": f"{len(training.x)} rows, hash {fingerprint(training)}",
            "validation": "none" if held_out is None else f"{len(held_out.x)} rows, hash {fingerprint(held_out)}",
        }  # fmt: skip

    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        loss = LossModule(flow, objective, autocast=torch.bfloat16 if precision == "bf16" else None)
        wrapped = loss if fabric is None else fabric.strategy.setup_module(loss)
        settings = Settings(
            epochs, batch_size, clip, patience, seed, drop_last, None if checkpoint is None else Path(checkpoint),
            checkpoint_seconds, checkpoint_epochs, progress, tuple(callbacks),
        )  # fmt: skip
        rates = Schedule(learning_rate, schedule, epochs * settings.batches(len(training.x)), warmup=warmup)
        trainer = Trainer(
            loss, wrapped, _optimiser(loss, learning_rate, weight_decay), rates,
            None if ema is None else MovingAverage(flow, ema), training, held_out, rows, settings, arguments,
        )  # fmt: skip
        if settings.folder is not None:
            checkpoints.prepare(settings.folder)
            state = checkpoints.read(settings.folder) if resume else None
            if state is not None:
                _check_same(state["arguments"], arguments)
                trainer.restore(state)
                trainer.file = str(settings.folder / checkpoints.FILE)
            if process_rank() == 0:
                checkpoints.clean(settings.folder, everything=state is None)
        return trainer.run()


def _enter(flow: nn.Module, data: Any, names: Names, dtype: torch.dtype) -> Batch:
    """Checked rows with row numbers, in the dtype of the flow; dequantised if the flow has point masses."""
    batch = check(as_batch(data), names)
    if not batch.x.is_floating_point():  # counts and levels are numbers too
        batch = batch._replace(x=batch.x.to(dtype))
    if batch.index is None:
        batch = batch._replace(index=torch.arange(len(batch.x), device=batch.x.device))
    dequantise: Any = getattr(flow, "dequantise", None)
    if dequantise is not None:
        # a flow over physical units computes its preprocessing in float64 itself: its rows keep their precision
        mask = {} if batch.mask is None else {"mask": batch.mask}
        batch = batch._replace(x=dequantise(batch.x, batch.index, **mask))
        check(batch, names)
        getattr(flow, "check_rows", lambda rows: None)(batch)
        return batch

    def convert(leaf: Tensor) -> Tensor:
        return leaf.to(dtype) if leaf.is_floating_point() else leaf

    # once more: a number may be finite in float64 and infinite in float32
    batch = check(map_tensors(convert, batch), names)
    getattr(flow, "check_rows", lambda rows: None)(batch)  # what only the flow can tell: is a row a point of its space?
    return batch


def _counting(batch: Batch, rows: Tensor) -> tuple[Batch, Tensor]:
    """Without the rows of weight 0: an infinite loss there would make the gradient of all undefined, 0 times infinity."""
    if batch.weight is None or bool((batch.weight != 0).all()):
        return batch, rows
    counted = (batch.weight != 0).nonzero()[:, 0]
    return take(batch, counted), rows[counted.cpu()]


def _description(flow: nn.Module, dtype: torch.dtype) -> str:
    """Class, size and, where they are recorded, the constructor's arguments: not all of them show in the weights' shapes."""
    text = f"{type(flow).__qualname__} with {sum(p.numel() for p in flow.parameters())} weights ({dtype})"
    try:
        arguments = dumps(configuration(flow), indent=None)
    except UserError:  # a flow of another package, or one that was wrapped as a finished object
        return text
    return f"{text}, arguments {hashlib.blake2b(arguments.encode(), digest_size=16).hexdigest()}"


def _optimiser(loss: LossModule, learning_rate: float, weight_decay: float) -> torch.optim.Optimizer:
    parameters = [p for p in loss.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    fused = all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
    return torch.optim.AdamW([group for group in groups if group["params"]], lr=learning_rate, fused=fused)


def _device(fabric: Any, device: torch.device) -> torch.device:
    if fabric is None:
        if process_count() > 1:
            raise UserError(f"{process_count()} processes run but fit got no fabric: give fabric=, or each trains its own flow")
        return device
    if fabric.world_size != process_count():
        raise UserError(f"the fabric has {fabric.world_size} processes but was not launched: call fabric.launch() first")
    if type(fabric.strategy).__name__ not in _STRATEGIES:
        raise UserError(f"the fabric's strategy is {type(fabric.strategy).__name__}: weights may not be sharded, choose 'ddp'")
    return fabric.device


def _check_same(before: dict[str, Any], now: dict[str, Any]) -> None:
    longer = before["schedule"] in ("constant", "plateau") and now["epochs"] >= before["epochs"]
    for name in now:
        if before.get(name) != now[name] and not (name == "epochs" and longer):
            raise UserError(
                f"resume=True: {name} was {before.get(name)} in the checkpoint and is {now[name]} now; "
                "give the same, or train afresh with resume=False"
            )
