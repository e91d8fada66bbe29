"""The process that couples ahead: both of its ends."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
import weakref
from multiprocessing.connection import Connection, Pipe
from typing import Any

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.couplings.plan import Plan, take
from sciflow.transport.couplings.shared_memory import map_places
from sciflow.transport.pair import Pair

__all__ = ["Worker", "couple"]

_ENTRY = "import sys; from sciflow.transport.couplings.worker import serve; serve(*map(int, sys.argv[1:]))"
_REPORTS = 32  # reports of progress in a pass: more would fill the pipe while the training does not read


def couple(plan: Plan, data: dict[str, Any], turn: dict[str, Any], block: int, number: int) -> bool:
    """Couples the piece of that number: writes which noise each of its rows gets. Whether there are weights."""
    rows: Tensor = turn["order"][number * block : (number + 1) * block]
    uniform = turn["uniform"]
    pair = take(Pair(turn["noise"], data["x"], data["condition"], None, data["mask"]), rows)
    index, weight = plan.arrangement(pair, None if uniform is None else uniform[rows])
    turn["chosen"][rows] = rows[index]
    if weight is not None:
        turn["weight"][rows] = weight
    return weight is not None


class Worker:
    """The end that trains. The process ends with this object, and with the process that it belongs to, however that ends.

    It is a new interpreter that does not run the user's script again, as one of `multiprocessing` would: it needs no guard.

    Raises `UserError` if the coupling is of a class that another process cannot import, `OSError` if no process starts.
    """

    def __init__(self, plan: Plan, places: Any, size: int, block: int, descriptor: int) -> None:
        setup = (torch.get_default_dtype(), torch.get_float32_matmul_precision(), places, size, block)
        hint = "define its class at the top of a module that can be imported, or give Prefetched worker=False"
        try:
            made = pickle.dumps(plan)
        except Exception as error:
            raise UserError(f"{plan!r} cannot be handed to another process ({error}): {hint}") from error
        if b"__main__" in made:
            raise UserError(f"{plan!r} is of a class of the script itself, which another process does not import: {hint}")
        self.line, theirs = Pipe()
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
        numbers = (theirs.fileno(), descriptor, os.getpid())
        try:
            # a session of its own: Ctrl-C is for the training, which ends this one
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-c", _ENTRY, *map(str, numbers)], pass_fds=numbers[:2], start_new_session=True,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                env={**os.environ, **threads, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
            )  # fmt: skip
        finally:
            theirs.close()
        self.stop = weakref.finalize(self, _stop, self.process, self.line, os.getpid())
        self.line.send(setup)
        self.line.send_bytes(made)


def _stop(process: subprocess.Popen[bytes], line: Connection, owner: int) -> None:
    if os.getpid() == owner:  # not in a fork of it
        line.close()
        process.kill()
        process.wait()


def serve(channel: int, descriptor: int, parent: int) -> None:
    """The other end: couples the passes it is told of, until nobody listens any more."""
    torch.set_num_threads(1)
    line = Connection(channel)
    try:
        dtype, precision, places, size, block = line.recv()
        torch.set_default_dtype(dtype)
        torch.set_float32_matmul_precision(precision)
        shared = map_places(places, size, descriptor)
        plan = pickle.loads(line.recv_bytes())
        line.send(("ready",))
        while True:
            while not line.poll(1.0):  # a fork of the parent may keep the line open after its end
                _check_parent(parent)
            number, slot = line.recv()
            _pass(line, plan, shared["data"], shared["turns"][slot], block, number, parent)
    except (EOFError, OSError, SystemExit):
        return
    except BaseException as error:
        line.send(("failed", f"{type(error).__name__}: {error}"))


def _pass(
    line: Connection, plan: Plan, data: dict[str, Any], turn: dict[str, Any], block: int, number: int, parent: int
) -> None:
    pieces = -(-len(turn["order"]) // block)
    weighted, often = False, -(-pieces // _REPORTS)
    for piece in range(pieces):
        if piece >= int(turn["reached"]):  # the training has done the rest, from the other end
            break
        _check_parent(parent)
        weighted |= couple(plan, data, turn, block, piece)
        if (piece + 1) % often == 0 or piece + 1 == pieces:
            line.send(("at", number, piece + 1, weighted))
    line.send(("ended", number))


def _check_parent(parent: int) -> None:
    if os.getppid() != parent:
        raise SystemExit
