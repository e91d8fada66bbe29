"""The training loop: steps, epochs, validation, early stopping, checkpoints."""

from __future__ import annotations

import math
import time
from contextlib import nullcontext
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.training import checkpoint as checkpoints
from sciflow.training.average import MovingAverage
from sciflow.training.data import share
from sciflow.training.loss import LossModule
from sciflow.training.objective import Batch
from sciflow.training.processes import any_process, gather, process_count, process_rank, sum_over_processes
from sciflow.training.progress import ProgressBar
from sciflow.training.randomness import random_states, restore_random
from sciflow.training.result import FitResult, TrainingDiverged
from sciflow.training.schedule import Schedule
from sciflow.training.settings import Counters, Settings
from sciflow.training.validation import validate

__all__ = ["Trainer"]


class Trainer:
    """The state of a training and the loop over it; `fit` builds it.

    Arguments:
        loss: the module whose forward is the loss; `wrapped` is the same one or a data-parallel wrapper of it.
        data, validation: rows to train on and to validate on (None without a validation set).
        rows: for each row of `data` and then of `validation` its number in what the user gave.
        arguments: what has to be the same when a training is resumed.
    """

    def __init__(
        self,
        loss: LossModule,
        wrapped: nn.Module,
        optimiser: torch.optim.Optimizer,
        schedule: Schedule,
        average: MovingAverage | None,
        data: Batch,
        validation: Batch | None,
        rows: tuple[Tensor, Tensor],
        settings: Settings,
        arguments: dict[str, Any],
    ) -> None:
        self.loss, self.wrapped, self.optimiser, self.schedule, self.average = loss, wrapped, optimiser, schedule, average
        self.data, self.validation, self.rows, self.settings, self.arguments = data, validation, rows, settings, arguments
        self.flow, self.parameters = loss.flow, [p for p in loss.parameters() if p.requires_grad]
        self.device = self.parameters[0].device
        self.processes, self.rank = process_count(), process_rank()
        self.batches = settings.batches(len(data.x))
        # batches of signed weights may sum to anything, also to nothing: they are normalised by the mean over all rows
        signed = data.weight is not None and bool((data.weight < 0).any())
        self.mean_weight = data.weight.double().mean().item() if signed and data.weight is not None else None
        self.now, self.best = Counters(), self._flow_state()
        self.seconds, self.saved, self.began = 0.0, time.monotonic(), time.monotonic()
        self.previous = torch.empty(0, dtype=torch.int64)
        self.file: str | None = None

    def run(self) -> FitResult:
        """Train to the end; afterwards the flow has its best weights and is in eval mode, also after an error."""
        self.began = self.saved = time.monotonic()
        try:
            with ProgressBar(self.settings.epochs * self.batches, done=self.now.step, visible=self.settings.progress) as bar:
                while self.now.reason is None:
                    self._run_epoch(bar)
        finally:
            self.loss.eval()
            self.flow.load_state_dict(self.best)
        now = self.now
        return FitResult(now.history, now.best_epoch, now.best_loss, self._elapsed(), now.step, now.reason or "")

    def state(self) -> dict[str, Any]:
        """Everything that the rest of the training depends on."""
        memory = self.optimiser.state_dict()["state"]
        return {
            "counters": asdict(self.now),
            "best": self.best,
            "arguments": self.arguments,
            "seconds": self._elapsed(),
            "flow": self.flow.state_dict(),
            "objective": self.loss.objective.state_dict(),
            "optimiser": {str(number): entry for number, entry in memory.items()},
            "average": None if self.average is None else self.average.values,
            "schedule": self.schedule.state(),
            "random": random_states(self.device),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """The inverse of `state`."""
        self.now, self.seconds = Counters(**state["counters"]), state["seconds"]
        self.best = {name: tensor.to(self.device) for name, tensor in state["best"].items()}
        self.flow.load_state_dict(state["flow"])
        self.loss.objective.load_state_dict(state["objective"])
        memory = {int(number): entry for number, entry in state["optimiser"].items()}
        self.optimiser.load_state_dict({"state": memory, "param_groups": self.optimiser.state_dict()["param_groups"]})
        if self.average is not None:
            for name, value in state["average"].items():
                self.average.values[name].copy_(value)
        self.schedule.restore(state["schedule"])
        restore_random(state["random"], self.device)
        if self.now.reason == "all epochs done" and self.now.epoch < self.settings.epochs:
            self.now.reason = None

    def save(self) -> None:
        """Write a checkpoint: all processes contribute, process 0 writes."""
        if self.settings.folder is None:
            return
        state = self.state()
        if self.rank == 0:
            self.file = str(checkpoints.write(self.settings.folder, state))
        self.saved = time.monotonic()

    def _run_epoch(self, bar: ProgressBar) -> None:
        generator = torch.Generator().manual_seed(self._seed(self.now.epoch))
        order = torch.randperm(len(self.data.x), generator=generator).to(self.data.x.device)
        size, began = self.settings.batch_size, time.monotonic()
        if self.now.batch == 0:
            # noise inside the model or the objective: other numbers in each process, the same after a resume
            torch.manual_seed(self._seed(self.now.epoch) + 7919 * (self.rank + 1))
        self.loss.train()
        for batch in range(self.now.batch, self.batches):
            due = self._step(order[batch * size : (batch + 1) * size])
            self.now.batch, self.now.step = batch + 1, self.now.step + 1
            if due and self.now.batch < self.batches:
                self.save()
            if bar.visible:
                bar.update(self.now.step, self._text())
        self._end_epoch(began)

    def _step(self, rows: Tensor) -> bool:
        """One optimiser step on the rows of a global batch; whether a checkpoint is due."""
        rate = self.schedule.rate(self.now.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        own, batch = share(self.data, rows, self.device)
        total, weight, penalty = self.wrapped(batch)
        loss_sum, weight_sum = total.detach(), weight.detach()
        extra = torch.zeros_like(loss_sum) if penalty is None else penalty.detach().to(loss_sum.dtype)
        due = torch.full_like(loss_sum, float(self._due() and self.rank == 0))
        if self.processes > 1:
            # one message for all: also that process 0 wants a checkpoint, for which it needs the others
            sums = sum_over_processes(torch.stack([loss_sum, weight_sum, extra / self.processes, due]).double())
            loss_sum, weight_sum, extra, due = sums.unbind()
        if self.mean_weight is not None:
            weight_sum = torch.full_like(weight_sum, len(rows) * self.mean_weight)
        # the gradients of all processes are averaged, hence the factor; a batch without weight teaches nothing
        scale = self.processes / weight_sum.clamp_min(torch.finfo(weight_sum.dtype).tiny)
        self.optimiser.zero_grad(set_to_none=True)
        loss = total * scale.to(total.dtype)
        (loss if penalty is None else loss + penalty).backward()
        norm = extra
        if self.settings.clip is not None:
            norm = torch.nn.utils.clip_grad_norm_(self.parameters, self.settings.clip).to(extra)
        # the one moment of a step at which the device is waited for, before anything is changed
        lost, weighed, punished, wanted, steepness = torch.stack([loss_sum, weight_sum, extra, due, norm]).tolist()
        if not math.isfinite(lost + punished):
            raise self._diverged(own)
        if not math.isfinite(steepness):
            raise self._error("the gradient became not finite", self.now.step, own)
        self.optimiser.step()
        if self.average is not None:
            self.average.update(self.now.step)
        self.loss.objective.after_step()
        self.now.loss_sum += lost
        self.now.weight_sum += weighed
        self.previous = own
        return wanted > 0

    def _end_epoch(self, began: float) -> None:
        now = self.now
        loss = now.loss_sum / now.weight_sum if now.weight_sum else math.nan
        rate = self.optimiser.param_groups[0]["lr"]
        record: dict[str, Any] = {"epoch": now.epoch + 1, "step": now.step, "loss": loss, "validation_loss": None}
        merit = -float(now.epoch)  # without a validation set the last epoch is the best one
        with nullcontext() if self.average is None else self.average.applied():
            if not self._finite_weights():
                raise self._error("the weights became not finite", now.step - 1, self.previous)
            if self.validation is not None:
                found = validate(self.loss, self.validation, self.settings.batch_size, self.device, self._seed(-1))
                if not math.isfinite(found.loss):
                    raise self._error("the validation loss became not finite", now.step - 1, found.bad, held_out=True)
                record["validation_loss"] = found.loss
                if found.measured:
                    record["validation"] = found.measured
                merit = self.loss.objective.merit(found.loss, found.measured)
            now.stale += 1
            if merit < now.best_merit:
                self.best, now.best_merit, now.best_epoch, now.stale = self._flow_state(), merit, now.epoch + 1, 0
                now.best_loss = record["validation_loss"]
        self.schedule.after_epoch(loss if self.validation is None else merit)
        record.update(learning_rate=rate, seconds=time.monotonic() - began, **self.loss.objective.report())
        now.history.append(record)
        now.epoch, now.batch, now.loss_sum, now.weight_sum = now.epoch + 1, 0, 0.0, 0.0
        if self.settings.patience is not None and now.stale >= self.settings.patience:
            now.reason = "early stopping"
        if now.epoch >= self.settings.epochs:
            now.reason = "all epochs done"
        if any_process(any([bool(callback(record)) for callback in self.settings.callbacks])):  # each one is called
            now.reason = "callback"
        every = self.settings.checkpoint_epochs
        if now.reason is not None or (every is not None and now.epoch % every == 0):
            self.save()

    def _diverged(self, own: Tensor) -> TrainingDiverged:
        """Whose fault it is: the step before, whose gradient spoilt the weights, or rows of this one."""
        if not self._finite_weights():
            return self._error("the weights became not finite", self.now.step - 1, self.previous)
        bad = ~torch.isfinite(self.loss.losses).to(own.device)[: len(own)]
        rows = gather(own[bad])
        if len(rows) == 0:
            return self._error("the penalty became not finite", self.now.step, own)
        return self._error("the loss became not finite", self.now.step, own[bad])

    def _error(self, problem: str, step: int, own: Tensor, *, held_out: bool = False) -> TrainingDiverged:
        numbers = self.rows[int(held_out)][gather(own)].tolist()
        rate = self.optimiser.param_groups[0]["lr"]
        return TrainingDiverged(
            problem, step=step, epoch=self.now.epoch + 1, learning_rate=rate, rows=numbers, checkpoint=self.file
        )

    def _finite_weights(self) -> bool:
        return all(bool(torch.isfinite(weight).all()) for weight in self.parameters)

    def _flow_state(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.flow.state_dict().items()}

    def _due(self) -> bool:
        every = self.settings.checkpoint_seconds
        return self.settings.folder is not None and every is not None and time.monotonic() - self.saved >= every

    def _seed(self, epoch: int) -> int:
        return (self.settings.seed * 1_000_003 + epoch) % 2**63

    def _elapsed(self) -> float:
        return self.seconds + time.monotonic() - self.began

    def _text(self) -> str:
        now = self.now
        text = f"epoch {now.epoch + 1}/{self.settings.epochs}  loss {now.loss_sum / (now.weight_sum or math.nan):.4f}"
        if now.history and now.history[-1]["validation_loss"] is not None:
            text += f"  validation {now.history[-1]['validation_loss']:.4f}"
        return f"{text}  learning rate {self.optimiser.param_groups[0]['lr']:.1e}"
