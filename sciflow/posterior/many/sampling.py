"""Draws for many observations, wherever they are made."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import sciflow
from sciflow.arguments import integer
from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.posterior.amortised.model import AmortisedPosterior
from sciflow.posterior.amortised.refinement import refined_target
from sciflow.posterior.clusters import cluster
from sciflow.posterior.many.drawing import Drawn, Work
from sciflow.posterior.many.reading import Many
from sciflow.posterior.many.running import Batch, in_series, on_cluster
from sciflow.posterior.many.store import ManyStore
from sciflow.posterior.many.summary import summary
from sciflow.posterior.method import Method, described
from sciflow.posterior.prior import Prior
from sciflow.posterior.problem import Problem
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.result import Posterior
from sciflow.posterior.target import Target
from sciflow.store.tree import numpy_of
from sciflow.training.progress import ProgressBar

__all__ = ["sample_many"]

_WAITING = 64  # chunks in memory while it is not known what an observation looks like


def sample_many(
    method: Any, observations: Any, draws: int, path: str | Path, *, problem: Problem | None = None, dask: Any = None,
    workers: int | None = None, seed: int = 0, resume: bool = True, chunk: int = 8, threads: int = 1, progress: bool = True,
    **choices: Any,
) -> Many:  # fmt: skip
    """Draw for each observation, write chunks of observations to one Zarr store, and judge them one by one and together.

    The draws of observation i depend on (seed, i) and on the observation alone: bit for bit the same in series and on any
    number of workers, for any chunk size, interrupted or not, on processors of one kind. Others, and another `threads`, round
    sums differently: single draws may then differ in their last digits, and where a method accepts or resamples by comparing
    numbers, in all digits, at the same distribution.

    A finished chunk is on disk and marked; the chunks of a worker that dies are drawn again by another one; a run that is
    killed goes on where it was when it is called again with the same arguments. An observation that raises is recorded with
    the reason, is NaN in the store, and counted in the certificate.

    Arguments:
        method: a `Sampler` or `Estimator`; or an `AmortisedPosterior`, or any method(y, draws, seed=, **choices) -> `Result`.
        observations: of a method: targets; or, with `problem`, data y. Of an amortised posterior: data. Data are a tensor
            (N, ...), a mapping of such tensors, or a sequence.
        draws: per observation (and chain).
        path: of the Zarr folder, read by `read_many`.
        problem: whose observation is replaced by each y.
        dask: None: in series, without Dask; "local", an address, or a `distributed.Client`, see `cluster`. Workers use one
            thread of Python at a time: give them processes.
        workers: of a local cluster.
        seed: of the run.
        resume: go on with an unfinished store, and take a finished one as it is; with False both are replaced.
        chunk: observations that are written and lost together.
        threads: of torch, for each observation.
        choices: handed to an amortised posterior: `refine`, `likelihood`, ...

    Traces of the runs are not kept. Raises `UserError` if every observation fails, with the first reason.

    >>> import tempfile
    >>> from sciflow.posterior.problems import GaussianMixtureFlow, LinearGaussian
    >>> from sciflow.posterior.samplers import Importance
    >>> exact = LinearGaussian(GaussianMixtureFlow([[0.0]], 1.0), [[1.0]], 1.0, [2.0])
    >>> y = torch.tensor([[2.0], [0.0], [torch.nan]])
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     many = sample_many(Importance(), y, 400, f"{folder}/draws.zarr", problem=exact.problem)
    ...     many.x.shape, bool(abs(many[0].mean() - 1) < 0.2), many.failures[2][:47]
    ((3, 1, 400, 1), True, 'UserError: the observation has 1 of 1 values th')
    """
    draws, chunk = integer("draws", draws, 1, 2**40), integer("chunk", chunk, 1, 2**31)
    seed, threads = integer("seed", seed, 0, 2**64), integer("threads", threads, 1, 2**16)
    items, observed = _items(observations)
    _check(method, items, problem, choices)
    work = Work(method, draws, seed, problem, choices, threads, torch.get_default_dtype())
    request = {"observations": len(items), "draws": draws, "seed": seed, "threads": threads, "method": described(method),
               "choices": described(choices), "prior": _said(getattr(method, "prior", None)),
               "data": _fingerprint(items, method, problem)}  # fmt: skip
    store = ManyStore(path, request, chunk, resume=resume)
    _same_density(store, work, items)
    if not store.finished:
        try:
            with cluster(dask, workers=workers) as client:
                _run(store, work, items, observed, client, progress)
        except BaseException:
            store.abandon()
            raise
        store.finish(_judged(store.records(), request))
    return Many(store.path)


def _run(
    store: ManyStore, work: Work, items: Sequence[Any], observed: Mapping[str, Any] | None, client: Any, progress: bool
) -> None:
    size, done = store.chunk, store.done()
    chunks = [Batch(number, first, items[first : first + size]) for number, first in enumerate(range(0, len(items), size))]
    left = [entry for entry in chunks if entry.number not in done]
    kind = getattr(type(work.method), "result", Posterior).group
    waiting: dict[int, list[Drawn]] = {}
    place = failed = 0  # chunks that were looked at for the first observation with draws

    def hold() -> bool:
        return store.group is None and len(waiting) - place >= _WAITING

    found: Iterator[tuple[int, list[Drawn]]]
    found = in_series(work, left) if client is None else on_cluster(client, work, left, hold)
    with ProgressBar(len(chunks), done=len(done), visible=progress) as bar:
        bar.update(len(done), "sampling")
        for number, drawn in found:
            waiting[number] = drawn
            failed += sum(bool(entry.failure) for entry in drawn)
            # all are laid out like the first one by number, not by time: the store does not depend on who is faster
            while store.group is None and place in waiting:
                first = next((entry for entry in waiting[place] if not entry.failure), None)
                place += 1
                if first is not None:
                    store.lay_out(kind, first, observed)
            if store.group is not None:
                for ready in sorted(waiting):
                    store.write(ready, waiting.pop(ready))
                    done.add(ready)
            bar.update(len(done), f"sampling, {failed} observations without draws")
    if store.group is None:
        raise UserError(f"all {len(items)} observations failed; the first: {waiting[0][0].failure}")


def _judged(records: Mapping[str, np.ndarray], request: Mapping[str, Any]) -> Certificate:
    failures = {number: str(text) for number, text in enumerate(records["failure"]) if text}
    certificates = {
        number: Certificate.from_json(str(text)) for number, text in enumerate(records["certificate"]) if number not in failures
    }
    bad = [int(number) for number in np.flatnonzero(records["not_finite"])]
    shown = {name: request[name] for name in ("method", "seed", "draws")}
    return summary(certificates, failures, bad, **shown, sciflow=sciflow.__version__)


def _items(observations: Any) -> tuple[list[Any], dict[str, Any] | None]:
    """One entry per observation; and all of them as arrays, if they are."""
    if isinstance(observations, (Tensor, np.ndarray)):
        rows = torch.as_tensor(observations)
        if rows.dim() == 0 or not len(rows):
            raise UserError(f"the observations have shape {tuple(rows.shape)}: give one row for each")
        return list(rows), {"y": numpy_of(rows)}
    if isinstance(observations, Mapping):
        parts = {str(name): torch.as_tensor(value) for name, value in observations.items()}
        lengths = {name: len(value) for name, value in parts.items()}
        if not parts or len(set(lengths.values())) != 1 or not next(iter(lengths.values())):
            raise UserError(f"the observations have {lengths} rows: give as many of each, and one at least")
        count = next(iter(lengths.values()))
        return [{name: value[row] for name, value in parts.items()} for row in range(count)], {
            name: numpy_of(value) for name, value in parts.items()
        }
    items = list(observations)
    if not items:
        raise UserError("there are no observations: give one at least")
    data: list[Any] = [entry.observation if isinstance(entry, Problem) else entry for entry in items]
    if all(isinstance(entry, (Tensor, np.ndarray)) for entry in data) and len({tuple(entry.shape) for entry in data}) == 1:
        return items, {"y": np.stack([numpy_of(entry) for entry in data])}
    return items, None


def _check(method: Any, items: Sequence[Any], problem: Problem | None, choices: Mapping[str, Any]) -> None:
    if isinstance(method, Method):
        if choices:
            raise UserError(f"{type(method).__name__} takes no {', '.join(choices)} here: its settings are its own arguments")
        for number, item in enumerate(items):
            if problem is None and not isinstance(item, Target):
                raise UserError(
                    f"observation {number} is a {type(item).__name__}: {type(method).__name__} needs targets, or problem= into "
                    "which observations are put"
                )
            if problem is not None and isinstance(item, Target):
                raise UserError(f"observation {number} is a {type(item).__name__} already: leave problem= out")
    elif not callable(method):
        raise UserError(f"the method is a {type(method).__name__}: give a Sampler, an Estimator or an AmortisedPosterior")
    elif problem is not None:
        raise UserError(f"problem= is for samplers: {type(method).__name__} takes observations as they are")


def _fingerprint(items: Sequence[Any], method: Any, problem: Problem | None) -> str:
    """Of data, weights, and what targets say of themselves."""
    found = hashlib.sha256(described(problem).encode())
    if isinstance(method, nn.Module):
        for name, value in sorted(method.state_dict().items()):
            found.update(name.encode() + np.ascontiguousarray(numpy_of(value)).tobytes())
    for item in items:
        if isinstance(item, Target):
            found.update(described(item).encode())
            item = getattr(item, "observation", None)
        for name, value in sorted(item.items()) if isinstance(item, Mapping) else [("", item)]:
            array = np.ascontiguousarray(numpy_of(value)) if isinstance(value, (Tensor, np.ndarray)) else None
            found.update(name.encode())
            found.update(
                described(value).encode() if array is None else str((array.dtype, array.shape)).encode() + array.tobytes()
            )
    return found.hexdigest()


def _said(prior: Any) -> str:
    """What a prior says of itself, and two of its draws: a distribution does not print its parameters."""
    if not isinstance(prior, Prior):
        return described(prior)
    with torch.no_grad():
        rows = prior.draw(2, Randomness(0, "prior", device=prior.reference.device, dtype=prior.reference.dtype))
    return f"{described(prior)} with draws {', '.join(f'{float(value):.3g}' for value in rows.flatten()[:20])}"


def _same_density(store: ManyStore, work: Work, items: Sequence[Any]) -> None:
    """Refuse to go on with other priors or likelihoods: the density at a stored draw must be the stored one."""
    done = store.done()
    if not done or "log_prob" not in store.shapes:
        return
    failures = store.records()["failure"]
    group: Any = store.group
    for number in range(len(items)):
        if number // store.chunk not in done or failures[number]:
            continue
        target = _target(work, items[number])
        if target is None:
            return
        x = torch.as_tensor(group[f"{group.attrs['kind']}/x"][number, 0, :1]).to(target.device, target.dtype)
        stored, now = float(group["sample_stats/log_prob"][number, 0, 0]), float(target.log_prob(x)[0])
        if stored != now and not abs(stored - now) <= 1e-3 * (1 + abs(stored)):
            raise UserError(
                f"{store.path}: cannot resume: log p~ of the first draw of observation {number} was {stored:.6g} and is "
                f"{now:.6g} now (another prior or likelihood?); use resume=False to start again"
            )
        return


def _target(work: Work, item: Any) -> Target | None:
    """Whose draws they are, if that is known."""
    if isinstance(work.method, Method):
        return (item if work.problem is None else work.problem.with_observation(item)).counted()
    if isinstance(work.method, AmortisedPosterior) and work.choices.get("refine"):
        return refined_target(work.method, work.choices.get("likelihood")).counted()
    return None
