"""A Dask cluster by its name, with errors that say what is wrong."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from sciflow.arguments import integer
from sciflow.errors import UserError

__all__ = ["cluster"]


@contextmanager
def cluster(where: Any = None, *, workers: int | None = None, timeout: float = 10.0) -> Iterator[Any]:
    """A client of a cluster that has a worker, or None for no cluster; what was started here is stopped afterwards.

    Arguments:
        where: None: no cluster, and Dask is not imported. "local": processes of this machine, one thread each; a script then
            needs `if __name__ == "__main__":`, since they import it. An address such as "tcp://host:8786". Or a
            `distributed.Client`, which stays open.
        workers: of a local cluster; as many as there are processors by default.
        timeout: seconds to wait for the scheduler, and again for its first worker.

    Raises `UserError` if Dask is not installed, nobody answers in time, or the scheduler has no worker.

    >>> with cluster(None) as client:
    ...     print(client)
    None
    """
    if where is None:
        yield None
        return
    try:
        import distributed
    except ImportError as error:
        raise UserError("Dask is not installed: pip install 'sciflow[dask]'") from error
    with ExitStack() as stack:
        if isinstance(where, distributed.Client):
            client = where
            if client.status != "running":
                raise UserError(f"the Dask client is {client.status}: give one that is connected, or an address")
        elif not isinstance(where, str):
            raise UserError(f'dask is a {type(where).__name__}: give "local", an address like "tcp://host:8786", or a Client')
        elif where == "local":
            count = (os.cpu_count() or 1) if workers is None else integer("workers", workers, 1, 10_000)
            machine = stack.enter_context(
                distributed.LocalCluster(n_workers=count, processes=True, threads_per_worker=1, dashboard_address=":0")
            )
            client = stack.enter_context(distributed.Client(machine, set_as_default=False))
        else:
            client = stack.enter_context(_connected(distributed, where, timeout))
        if not client.scheduler_info(n_workers=-1)["workers"]:
            _wait(client, timeout)
        yield client


def _connected(distributed: Any, address: str, timeout: float) -> Any:
    try:
        return distributed.Client(address, timeout=timeout, set_as_default=False)
    except (OSError, TimeoutError) as error:
        raise UserError(
            f"no Dask scheduler answers at {address} within {timeout:g} s: start one with 'dask scheduler', give its address, "
            'or use "local"'
        ) from error
    except (ValueError, TypeError) as error:
        raise UserError(
            f'{address!r} is no address of a Dask scheduler ({error}): give "local" or "tcp://host:8786"'
        ) from error


def _wait(client: Any, timeout: float) -> None:
    address = client.scheduler_info(n_workers=-1)["address"]
    try:
        client.wait_for_workers(1, timeout=timeout)
    except TimeoutError as error:
        raise UserError(
            f"the Dask scheduler at {address} has no worker after {timeout:g} s: start some with 'dask worker {address}'"
        ) from error
