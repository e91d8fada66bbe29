"""Couplings computed ahead of the training, on another core."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, Objective
from sciflow.training.data import as_batch, check
from sciflow.training.processes import process_rank
from sciflow.transport.compatibility import check_objective
from sciflow.transport.couplings.ahead import Ahead
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.couplings.plan import Plan
from sciflow.transport.pair import Pair

__all__ = ["Prefetched"]


class Prefetched(Objective):
    """The same objective with its coupling computed by another process, one pass over the data ahead of the training.

    For each pass the whole training set gets new noise, is shuffled, cut into pieces of `block` rows and coupled; a training
    step looks the noise of its rows up. So the pieces are not the training's batches, and may be larger. What a row gets
    depends on (seed, number of the pass, process) alone, not on who computed it when: with or without a worker, and after
    a resumed training, the results are the same.

    Arguments:
        objective: a transport objective whose coupling is a `Plan`; validation goes on coupling its own batches.
        data: the rows that `fit` is given, all of them and in the same order.
        block: rows that are coupled together.
        worker: False computes each pass in line when it begins.

    The worker takes a few seconds to start, in which the training couples for itself, as it does wherever the worker is
    behind: what is gained is what a core can do meanwhile (`benchmarks/coupling.md`). It computes on the processor, on one
    thread, and ends with this object. If it is lost (killed, no memory, a system other than POSIX), a warning is logged and
    the training goes on in line. The data are held once more in shared memory, with twice the noise of a pass.

    Raises `UserError` for a learned base, whose draws of an earlier step would be stale, when `fit` trains on other rows,
    and for a coupling whose class the worker could not import since it is defined in the script itself.

    >>> from sciflow.transport.couplings.exact import ExactOT
    >>> from sciflow.transport.flow import TransportFlow
    >>> from sciflow.transport.objectives.flow_matching import FlowMatching
    >>> from sciflow.training import fit
    >>> x = torch.randn(64, 2)
    >>> objective = Prefetched(FlowMatching(coupling=ExactOT()), x, block=32)
    >>> fit(TransportFlow(2, network={"hidden": (8,)}), x, objective=objective, epochs=1, batch_size=16, progress=False).steps
    4
    """

    def __init__(self, objective: Objective, data: Any, *, block: int = 256, seed: int = 0, worker: bool = True) -> None:
        super().__init__()
        coupling = getattr(objective, "coupling", None)
        if not isinstance(coupling, Plan):
            raise UserError(f"{type(objective).__name__} with the coupling {coupling!r} has nothing to compute ahead")
        if block < 2:
            raise UserError(f"block={block}: a block of pairs to choose from needs at least 2 rows")
        rows = check(as_batch(data))
        if rows.source is not None or rows.index is not None:
            raise UserError("the data have a source or an index of their own: computing ahead needs noise and row numbers")
        self.objective, self.block, self.seed, self.worker = objective, block, seed, worker
        self._data = rows
        self._checked: Any = None
        self._ahead: Ahead | None = None
        # on the host, and no buffers: those of data-parallel training are overwritten by the first process's
        self._served, self._number = torch.zeros(len(rows.x), dtype=torch.bool), 0

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not flow.training:
            return self.objective(flow, batch)
        if self._checked is not flow:
            self._check(flow, batch)
        assert batch.index is not None
        rows = batch.index.cpu()
        if bool(self._served[rows].any()):
            self._served.zero_()
            self._number += 1
        self._served[rows] = True
        x0, weight = self._noise(flow, rows)
        device = batch.x.device
        placed = _Placed(None if weight is None else weight.to(device))
        coupling: Any = self.objective.coupling
        try:
            self.objective.coupling = placed  # type: ignore[assignment]
            return self.objective(flow, batch._replace(source=x0.to(device)))
        finally:
            self.objective.coupling = coupling

    def penalty(self, flow: nn.Module, batch: Batch) -> Tensor | None:
        return self.objective.penalty(flow, batch)

    def after_step(self) -> None:
        self.objective.after_step()

    def measure(self, flow: nn.Module, batch: Batch) -> dict[str, Tensor]:
        return self.objective.measure(flow, batch)

    def merit(self, loss: float, measured: Mapping[str, float]) -> float:
        return self.objective.merit(loss, measured)

    def report(self) -> dict[str, Any]:
        return self.objective.report()

    def extra_repr(self) -> str:
        inner = f"{type(self.objective).__name__}({self.objective.extra_repr()})"
        return f"{inner}, block={self.block}, seed={self.seed}"

    def get_extra_state(self) -> dict[str, Any]:
        return {"served": self._served, "number": self._number}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self._served.copy_(state["served"])
        self._number = state["number"]

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_ahead": None, "_checked": None}

    def _noise(self, flow: Any, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        plan: Any = self.objective.coupling
        data = self._data

        def draw(number: int) -> tuple[Tensor, Tensor, Tensor | None]:
            device, count = data.x.device, len(data.x)
            with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
                torch.manual_seed(((self.seed * 1_000_003 + number) * 7919 + process_rank()) % 2**63)
                order = torch.randperm(count)
                x0 = flow.base.rsample(count, None, data.mask, device=device, dtype=data.x.dtype)
                return order, x0, plan.uniform(count)

        if self._ahead is None:
            self._ahead = Ahead(plan, data, self.block, self.worker)
        return self._ahead(self._number, rows, draw)

    def _check(self, flow: Any, batch: Batch) -> None:
        if not hasattr(flow, "path"):
            raise UserError(
                f"Prefetched couples the rows as they are given, {type(flow).__name__} changes them: train its flow"
            )
        check_objective(flow, self.objective)
        object.__setattr__(self.objective, "_checked", flow)
        if any(weight.requires_grad for weight in flow.base.parameters()):
            raise UserError(
                "the base is learned: its noise cannot be drawn a pass ahead, give the objective without Prefetched"
            )
        if batch.index is None:
            raise UserError("the batch has no row numbers (index): computing ahead needs them")
        self._data, self._ahead = self._data._replace(x=self._data.x.to(batch.x.dtype)), None
        rows, known = batch.index.to(self._data.x.device), self._data.x
        if bool((rows >= len(known)).any()) or not torch.equal(known[rows].to(batch.x.device), batch.x):
            raise UserError("the rows that are trained on are not those that Prefetched was given: give both the same data")
        object.__setattr__(self, "_checked", flow)


class _Placed(Coupling):
    """The pair has been coupled before."""

    source_is_noise = True

    def __init__(self, weight: Tensor | None) -> None:
        self.weight = weight

    def __call__(self, pair: Pair) -> Pair:
        return pair._replace(weight=self.weight)
