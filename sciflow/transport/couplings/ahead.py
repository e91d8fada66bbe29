"""Two passes over the data: the one that is trained on, and the next one, which a worker couples meanwhile."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from subprocess import TimeoutExpired
from typing import Any

import torch
from torch import Tensor

from sciflow.training import Batch
from sciflow.transport.couplings.plan import Plan
from sciflow.transport.couplings.shared_memory import map_places, places, reserve
from sciflow.transport.couplings.worker import Worker, couple

__all__ = ["Ahead", "Draws"]

_log = logging.getLogger(__name__)
_PATIENCE = 600.0  # seconds that a worker may take for one piece

Draws = Callable[[int], tuple[Tensor, Tensor, Tensor | None]]  # of a pass: order of the rows, noise, uniforms


class Ahead:
    """The noise of rows in the pass of a number.

    Each pass is coupled piece by piece, by the worker from the first one on. Where the training needs a pass that is not
    ready (the worker still starts, is slower than the training, was killed, or there is none) it couples pieces itself, from
    the last one on. Both do the same arithmetic, on one thread: who did a piece does not show.
    """

    def __init__(self, plan: Plan, data: Batch, block: int, worker: bool) -> None:
        self.plan, self.block, rows = plan, block, len(data.x)
        self.pieces = -(-rows // block)
        real = torch.float64 if data.x.dtype == torch.float64 else torch.float32
        turn = {
            "order": torch.empty(rows, dtype=torch.int64, device="meta"),
            "noise": torch.empty_like(data.x, device="meta"),
            "uniform": torch.empty(rows, dtype=torch.float64, device="meta") if plan.random else None,
            "chosen": torch.empty(rows, dtype=torch.int64, device="meta"),
            "weight": torch.empty(rows, dtype=real, device="meta"),
            "reached": torch.empty((), dtype=torch.int64, device="meta"),  # from there on the training does the pieces
        }
        given = {"x": data.x, "condition": data.condition, "mask": data.mask}
        found, size = places({"data": given, "turns": {0: turn, 1: turn}})
        self.worker: Worker | None = None
        self.ready = False
        descriptor = reserve(size) if worker else -1
        try:
            shared = map_places(found, size, descriptor)
            self.data, self.turns = shared["data"], [_Turn(shared["turns"][slot]) for slot in (0, 1)]
            _copy(given, self.data)
            if worker:
                self.worker = Worker(plan, found, size, block, descriptor)
        except OSError as error:
            self._lost(f"could not be started ({error})")
        finally:
            if descriptor >= 0:
                os.close(descriptor)

    def __call__(self, number: int, rows: Tensor, draw: Draws) -> tuple[Tensor, Tensor | None]:
        """Noise and weights of these rows (on the host) in the pass of that number, which `draw` makes the noise of."""
        here, there = self.turns[number % 2], self.turns[(number + 1) % 2]
        if here.number != number:
            self._begin(here, number, draw)
        if there.number != number + 1 and self._listening():
            self._begin(there, number + 1, draw)
        if here.theirs < here.own:
            self._finish(here)
        chosen = here.shared["chosen"].index_select(0, rows)
        weight = here.shared["weight"].index_select(0, rows) if here.weighted else None
        return here.shared["noise"].index_select(0, chosen), weight

    def _begin(self, turn: _Turn, number: int, draw: Draws) -> None:
        while turn.busy:  # it may be at a last piece of the pass before the last one
            turn.shared["reached"].zero_()
            self._listen(_PATIENCE)
        turn.number, shared = -1, turn.shared
        for name, value in zip(("order", "noise", "uniform"), draw(number), strict=True):
            if value is not None:
                shared[name].copy_(value)
        shared["weight"].fill_(1)
        shared["reached"].fill_(self.pieces)
        turn.number, turn.theirs, turn.own, turn.weighted = number, 0, self.pieces, False
        if self.worker is not None and self._listening():
            turn.busy = True
            with self._attention():
                self.worker.line.send((number, number % 2))

    def _finish(self, turn: _Turn) -> None:
        with _one_thread():
            while turn.theirs < turn.own:
                self._listen()
                if turn.theirs < turn.own:
                    piece = turn.own - 1
                    turn.shared["reached"].fill_(piece)
                    turn.weighted |= couple(self.plan, self.data, turn.shared, self.block, piece)
                    turn.own = piece

    def _listening(self) -> bool:
        if not self.ready:
            self._listen()
        return self.ready

    def _listen(self, patience: float = 0.0) -> None:
        """What the worker has said meanwhile; waits that many seconds for something."""
        worker = self.worker
        if worker is None:
            return
        with self._attention():
            if patience and not worker.line.poll(patience):
                return self._lost(f"has not answered for {patience:.0f} s")
            while worker.line.poll():
                kind, *said = worker.line.recv()
                if kind == "failed":
                    return self._lost(f"failed ({said[0]})")
                self.ready = True
                for turn in self.turns:
                    if kind == "at" and turn.number == said[0]:
                        turn.theirs, turn.weighted = said[1], turn.weighted or said[2]
                    elif kind == "ended" and turn.number == said[0]:
                        turn.busy = False

    @contextmanager
    def _attention(self) -> Iterator[None]:
        """Around what is said: a worker that no longer listens is replaced, and one that was interrupted (Ctrl-C) given up."""
        try:
            yield
        except (EOFError, OSError):
            assert self.worker is not None
            with suppress(TimeoutExpired):
                self.worker.process.wait(10.0)
            self._lost(f"ended with status {self.worker.process.returncode}")
        except BaseException as error:
            self._lost(f"was interrupted ({type(error).__name__})")
            raise

    def _lost(self, how: str) -> None:
        _log.warning("the worker that couples ahead %s: from now on in line, with the same results, only slower", how)
        if self.worker is not None:
            self.worker.stop()
        self.worker, self.ready = None, False
        for turn in self.turns:
            turn.busy = False


class _Turn:
    """A pass as the training sees it."""

    def __init__(self, shared: dict[str, Any]) -> None:
        self.shared = shared
        self.number = -1
        self.theirs = self.own = 0  # the worker has done the pieces before the one, the training those from the other on
        self.weighted = False
        self.busy = False  # the worker may write to it


def _copy(values: Any, into: Any) -> None:
    """A nested dict of tensors into another one."""
    for name, value in values.items():
        if isinstance(into[name], dict):
            _copy(value, into[name])
        elif value is not None:
            into[name].copy_(value.detach())


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    if threads != 1:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        if threads != 1:
            torch.set_num_threads(threads)
