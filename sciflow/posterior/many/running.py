"""Chunks of observations in this process, or on a cluster."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

from sciflow.errors import UserError
from sciflow.posterior.many.drawing import Drawn, Work, drawn_chunk

__all__ = ["Batch", "in_series", "on_cluster"]


class Batch(NamedTuple):
    """Observations first, ..., first + len(items) - 1."""

    number: int
    first: int
    items: Sequence[Any]


def in_series(work: Work, chunks: Sequence[Batch]) -> Iterator[tuple[int, list[Drawn]]]:
    """The chunks with their numbers, one after the other."""
    for chunk in chunks:
        yield chunk.number, drawn_chunk(work, chunk.items, chunk.first)


def on_cluster(
    client: Any, work: Work, chunks: Sequence[Batch], hold: Callable[[], bool] = lambda: False
) -> Iterator[tuple[int, list[Drawn]]]:
    """The chunks as they are finished, in any order. What a worker had when it died is drawn again by another one.

    Two chunks per thread of the cluster are on their way at any time, so that neither the scheduler nor this process holds
    the whole run; none are sent while `hold()` and others are on their way.

    Raises `UserError` if a chunk kills one worker after the other, or the scheduler is lost.
    """
    import cloudpickle
    from distributed import CancelledError, KilledWorker, as_completed
    from distributed.comm import CommClosedError

    try:
        packed = cloudpickle.dumps(work)
    except Exception as error:
        raise UserError(
            f"the method or its problem cannot be sent to workers ({error}): define what it holds at the top of a module, or "
            "draw without a cluster"
        ) from error
    # made on a worker out of the bytes in its task, not scattered: what is scattered dies with the worker that holds it
    shared = client.submit(cloudpickle.loads, packed, pure=False)
    waiting = list(reversed(chunks))
    running: dict[Any, Batch] = {}
    finished = as_completed(loop=client.loop)
    try:
        while waiting or running:
            while waiting and len(running) < _most(client) and not (running and hold()):
                chunk = waiting.pop()
                future = client.submit(drawn_chunk, shared, chunk.items, chunk.first, pure=False, key=_key(chunk, shared))
                running[future] = chunk
                finished.add(future)
            future = next(finished)
            chunk = running.pop(future)
            drawn = future.result()
            future.release()
            yield chunk.number, drawn
    except KilledWorker as error:
        last = chunk.first + len(chunk.items) - 1
        raise UserError(
            f"the workers that drew observations {chunk.first} to {last} died one after the other (out of memory? a crash?): "
            "give workers more memory or take these out; what was finished is kept"
        ) from error
    except (CancelledError, CommClosedError, OSError) as error:
        raise UserError(
            f"the connection to the Dask scheduler was lost ({type(error).__name__}: {error}): start it and call again, what "
            "was finished is kept"
        ) from error
    except ImportError as error:
        raise UserError(f"a worker cannot import what it needs ({error}): install the same packages there") from error
    finally:
        with contextlib.suppress(Exception):  # of a scheduler that is gone
            client.cancel([*running, shared])


def _key(chunk: Batch, shared: Any) -> str:
    return f"observations-{chunk.first}-{shared.key}"


def _most(client: Any) -> int:
    return max(4, 2 * sum(client.nthreads().values()))
