"""Where chunks are computed."""

from __future__ import annotations

import multiprocessing
import os
import pickle
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from sciflow.arguments import integer
from sciflow.errors import UserError
from sciflow.posterior.simulation.chunk import Chunk, Task, run_chunk
from sciflow.transport.part import Part

__all__ = ["Processes", "Runner", "Serial"]


class Runner(Part):
    """Runs tasks and yields them with their chunks as they are finished, in any order."""

    @abstractmethod
    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Chunk]]: ...


class Serial(Runner):
    """One after the other, in this process."""

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Chunk]]:
        for task in tasks:
            yield task, run_chunk(task)


class Processes(Runner):
    """In processes of this machine; the simulator must be importable (a function of a module, not a lambda).

    A worker that dies is replaced and its chunks are run again, `attempts` times in all.

    Arguments:
        workers: how many; as many as there are processors by default.
    """

    def __init__(self, workers: int | None = None, *, attempts: int = 3) -> None:
        self.workers = (os.cpu_count() or 1) if workers is None else integer("workers", workers, 1, 10_000)
        self.attempts = attempts

    def __call__(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Chunk]]:
        if not tasks:
            return
        try:
            pickle.dumps(tasks[0].simulator)
        except Exception as error:
            raise UserError(
                f"the simulator cannot be sent to other processes ({error}): define it at the top of a module, or use Serial()"
            ) from error
        left = list(tasks)
        for attempt in range(self.attempts):
            done: set[int] = set()
            try:
                for task, chunk in self._once(left):
                    done.add(task.number)
                    yield task, chunk
                return
            except BrokenProcessPool as error:
                left = [task for task in left if task.number not in done]
                if attempt + 1 == self.attempts:
                    raise UserError(
                        f"worker processes died {self.attempts} times (out of memory? a crash in the simulator?), {len(left)} "
                        "chunks are left; what was finished is kept if a folder was given"
                    ) from error

    def _once(self, tasks: Sequence[Task]) -> Iterator[tuple[Task, Chunk]]:
        # spawned, not forked: this process may have threads
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(min(self.workers, len(tasks)), mp_context=context) as pool:
            waiting, running = list(reversed(tasks)), dict[Future[Chunk], Task]()
            try:
                while waiting or running:
                    while waiting and len(running) < 2 * self.workers:
                        task = waiting.pop()
                        running[pool.submit(run_chunk, task)] = task
                    for future in wait(running, return_when=FIRST_COMPLETED).done:
                        yield running.pop(future), future.result()
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
