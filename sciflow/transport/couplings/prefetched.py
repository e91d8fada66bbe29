"""Couplings computed ahead of the training, on another core."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.training import Batch, Objective
from sciflow.training.data import as_batch, check
from sciflow.training.processes import process_rank
from sciflow.transport.compatibility import check_objective
from sciflow.transport.couplings.base import Coupling
from sciflow.transport.couplings.plan import Plan, take
from sciflow.transport.pair import Pair

__all__ = ["Prefetched"]


class Prefetched(Objective):
    """The same objective with its coupling computed by a thread, one pass over the data ahead of the training.

    For each pass the whole training set gets new noise, is shuffled, cut into pieces of `block` rows and coupled; a training
    step looks the noise of its rows up. So the pieces are not the training's batches, and may be larger. What a row gets
    depends on (seed, number of the pass, process) alone, not on when the thread was done: with or without a thread, and after
    a resumed training, the results are the same. The thread competes with the training: on two cores it took longer than the
    coupling in line (`benchmarks/coupling.md`), so measure before using it for speed.

    Arguments:
        objective: a transport objective whose coupling is a `Plan`; validation goes on coupling its own batches.
        data: the rows that `fit` is given, all of them and in the same order.
        block: rows that are coupled together.
        thread: False computes a pass when it begins.

    Takes twice the memory of x; the first pass is waited for. Raises `UserError` for a learned base, whose draws of an earlier
    step would be stale, and when `fit` trains on other rows.

    >>> from sciflow.transport.couplings.exact import ExactOT
    >>> from sciflow.transport.flow import TransportFlow
    >>> from sciflow.transport.objectives.flow_matching import FlowMatching
    >>> from sciflow.training import fit
    >>> x = torch.randn(64, 2)
    >>> objective = Prefetched(FlowMatching(coupling=ExactOT()), x, block=32)
    >>> fit(TransportFlow(2, network={"hidden": (8,)}), x, objective=objective, epochs=1, batch_size=16, progress=False).steps
    4
    """

    served: Tensor
    passes: Tensor

    def __init__(self, objective: Objective, data: Any, *, block: int = 256, seed: int = 0, thread: bool = True) -> None:
        super().__init__()
        coupling = getattr(objective, "coupling", None)
        if not isinstance(coupling, Plan):
            raise UserError(f"{type(objective).__name__} with the coupling {coupling!r} has nothing to compute ahead")
        if block < 2:
            raise UserError(f"block={block}: a block of pairs to choose from needs at least 2 rows")
        rows = check(as_batch(data))
        if rows.source is not None or rows.index is not None:
            raise UserError("the data have a source or an index of their own: computing ahead needs noise and row numbers")
        self.objective, self.block, self.seed, self.thread = objective, block, seed, thread
        self._data, self._passes = rows, dict[int, _Pass]()
        self._checked: Any = None
        self.register_buffer("served", torch.zeros(len(rows.x), dtype=torch.bool))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))

    def forward(self, flow: nn.Module, batch: Batch) -> Tensor:
        if not flow.training:
            return self.objective(flow, batch)
        if self._checked is not flow:
            self._check(flow, batch)
        assert batch.index is not None
        if bool(self.served[batch.index].any()):
            self.served.zero_()
            self.passes += 1
        self.served[batch.index] = True
        x0, weight = self._result(flow, int(self.passes), batch.x.dtype)
        index = batch.index.to(x0.device)
        placed = _Placed(None if weight is None else weight[index].to(batch.x.device))
        coupling: Any = self.objective.coupling
        try:
            self.objective.coupling = placed  # type: ignore[assignment]
            return self.objective(flow, batch._replace(source=x0[index].to(batch.x.device)))
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

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_passes": {}, "_checked": None}

    def _result(self, flow: Any, number: int, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        for near in (number, number + 1) if self.thread else (number,):
            if near not in self._passes:
                self._passes[near] = self._begin(flow, near, dtype)
        for old in [key for key in self._passes if key < number]:
            del self._passes[old]
        return self._passes[number].result()

    def _begin(self, flow: Any, number: int, dtype: torch.dtype) -> _Pass:
        """Draws the noise here, since torch's generator belongs to the main thread; what follows needs no generator."""
        data = self._data._replace(x=self._data.x.to(dtype))
        rows = len(data.x)
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.manual_seed(((self.seed * 1_000_003 + number) * 7919 + process_rank()) % 2**63)
            order = torch.randperm(rows)
            x0 = flow.base.rsample(rows, None, data.mask, device=data.x.device, dtype=dtype)
            plan: Any = self.objective.coupling
            work = _Pass(plan, Pair(x0, data.x, data.condition, None, data.mask), plan.uniform(rows), order.split(self.block))
        if self.thread:
            work.start()
        return work

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
        rows, known = batch.index.to(self._data.x.device), self._data.x.to(batch.x.dtype)
        if bool((rows >= len(known)).any()) or not torch.equal(known[rows].to(batch.x.device), batch.x):
            raise UserError("the rows that are trained on are not those that Prefetched was given: give both the same data")
        object.__setattr__(self, "_checked", flow)


class _Placed(Coupling):
    """The pair has been coupled before."""

    def __init__(self, weight: Tensor | None) -> None:
        self.weight = weight

    def __call__(self, pair: Pair) -> Pair:
        return pair._replace(weight=self.weight)


class _Pass(threading.Thread):
    """One pass over the data, coupled piece by piece, here or in the thread."""

    def __init__(self, plan: Plan, pair: Pair, uniform: Tensor | None, pieces: tuple[Tensor, ...]) -> None:
        super().__init__(name="sciflow-coupling")
        self.plan, self.pair, self.uniform, self.pieces = plan, pair, uniform, pieces
        self.found: tuple[Tensor, Tensor | None] | None = None
        self.error: BaseException | None = None

    def run(self) -> None:
        x0, weight = torch.empty_like(self.pair.x0), None
        try:
            for rows in self.pieces:
                if not threading.main_thread().is_alive():
                    return
                piece = take(self.pair, rows)
                done = self.plan.arrange(piece, None if self.uniform is None else self.uniform[rows])
                x0[rows] = done.x0
                if done.weight is not None:
                    weight = torch.ones(len(x0), dtype=done.weight.dtype, device=x0.device) if weight is None else weight
                    weight[rows] = done.weight
            self.found = x0, weight
        except BaseException as error:  # it belongs to the training, which asks for the result
            self.error = error

    def result(self) -> tuple[Tensor, Tensor | None]:
        if self.found is None:
            if self.ident is None:
                self.run()
            else:
                self.join()
        if self.error is not None:
            raise self.error
        assert self.found is not None
        return self.found
