"""Reproducible draws from a distribution, in memory or streamed to Zarr."""

from __future__ import annotations

import contextlib
import logging
import operator
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray

from sciflow.arguments import integer
from sciflow.certificate import Certificate
from sciflow.errors import UserError
from sciflow.files import reason
from sciflow.noise import stream_id, uniform
from sciflow.persistence import fingerprint
from sciflow.store.files import certified, read_draws
from sciflow.store.source import Source, source
from sciflow.store.streaming import ZarrStream
from sciflow.store.tree import layout, numpy_of, versions

__all__ = ["draw"]

_ROWS, _NUMBERS = 2**16, 2**22  # of one call: rows through the flow, numbers in its input
_MOST = 2**62  # numbers of draws and streams stay below it: their sums fit into 64 bits
_log = logging.getLogger(__name__)


def draw(
    distribution: Any,
    n: int,
    *,
    seed: int = 0,
    chunk: int | None = None,
    path: str | Path | None = None,
    stream: int | str | None = None,
    start: int = 0,
    observed: Mapping[str, Any] | xarray.Dataset | None = None,
    constants: Mapping[str, Any] | xarray.Dataset | None = None,
    names: Sequence[str] | None = None,
    dims: Sequence[str] | None = None,
    coords: Mapping[str, Any] | None = None,
    certificate: Certificate | None = None,
    density: bool = True,
    resume: bool = False,
    progress: bool = True,
) -> xarray.DataTree:
    """n draws per batch element of a distribution, each of which depends on (seed, stream, draw number) alone.

    The base noise is bitwise the same for any `chunk`, number of processes, device or resume point; the draws agree to
    floating-point tolerance (the arithmetic of a network may depend on how many rows it sees at once).

    Arguments:
        distribution: what `flow(condition)` returns, or a torch distribution with an inverse CDF, or zuko's
            `flow(condition)` over such a base. Batch element b (counted flat) has the stream `stream + b`.
        chunk: draws per call; by default what keeps a call small in memory. Also the Zarr chunk.
        path: a Zarr folder to stream to instead of memory. It appears when it is complete.
        stream: the first stream, a number or a name; 0 by default. Shift it to draw for parts of a batch.
        start: the number of the first draw. Processes with (start, n) = (0, 50) and (50, 50) make the draws of (0, 100).
        observed, constants: named arrays for the groups `observed_data` and `constant_data`. Arrays that begin with
            the batch shape get its dimensions.
        names: coordinates of the last event dimension, such as the names of the features.
        dims: names of the event dimensions, or of batch and event dimensions. By default "feature" for a vector,
            x_dim_0, ... otherwise; "observation" or observation_0, ... for the batch.
        coords: coordinates by dimension.
        certificate: stored as JSON in the attribute `certificate`.
        density: False leaves the log-density out, which is expensive for a continuous flow.
        resume: continue `<path>.partial` where an interrupted call with the same arguments stopped, with its chunk
            size, and keep it if this call is interrupted. A complete store of the same request is returned as it is, with
            the `certificate` of this call if there is one; names, coordinates and other groups stay those of the first call.
        progress: show a bar after two seconds, if there is a terminal.

    Returns a tree with the groups `posterior` (x: chain = 1, draw, batch, event), `sample_stats` and, if given,
    `observed_data`, `constant_data`; attributes: versions, seed, stream, start, weights_sha256, certificate. In `sample_stats`
    are log_prob (where there is none, the group's attribute `no_log_prob` says why), log_prob_standard_error of a
    continuous flow with a stochastic trace, and n_velocity_evaluations of any continuous flow.
    If the flow has point masses x is quantised and log_prob is that of the dequantised variable. With `path` the arrays
    are read on demand. Flows are used in evaluation mode.

    Raises `UserError` for a bad argument, for a condition or draws that are not finite, for a distribution that has no map
    from uniforms (torch's own generator is never used in its stead), and if the files cannot be written.

    >>> from torch.distributions import Normal
    >>> tree = draw(Normal(torch.zeros(3), 1.0), 10, seed=1)
    >>> dict(tree["posterior"].sizes)
    {'chain': 1, 'draw': 10, 'observation': 3}
    >>> bool((tree["posterior"]["x"][:, 4:6] == draw(Normal(torch.zeros(3), 1.0), 2, seed=1, start=4)["posterior"]["x"]).all())
    True
    """
    n, start = integer("n", n, 1, _MOST), integer("start", start, 0, _MOST)
    first_stream = stream_id(stream) >> 1 if isinstance(stream, str) else integer("stream", stream or 0, -_MOST, _MOST)
    uniform(seed, first_stream, 0, 0)  # refuses a bad seed before anything is written
    origin = source(distribution)
    _check_condition(getattr(distribution, "context", None))
    chunk = _default_chunk(origin, n) if chunk is None else min(integer("chunk", chunk, 1, _MOST), n)
    wanted = density and origin.no_density is None
    request = {
        "seed": str(operator.index(seed)),  # a string: files have no unsigned 64-bit attributes
        "stream": str(0 if stream is None else stream),
        "start": start,
        "n": n,
        "weights_sha256": "" if origin.model is None else fingerprint(origin.model),
        "batch_shape": list(origin.batch_shape),
        "event_shape": list(origin.event_shape),
        "density": wanted,
    }
    attributes = {name: request[name] for name in ("seed", "stream", "start", "weights_sha256")}
    plan = layout(
        origin,
        n,
        start,
        attributes={**attributes, "versions": versions()},
        observed=observed,
        constants=constants,
        names=names,
        dims=dims,
        coords=coords,
        certificate=certificate,
        no_density=origin.no_density if density else "it was not asked for (density=False)",
    )

    def values(first: int, last: int) -> dict[str, np.ndarray]:
        return _values(origin, seed, first_stream, start + first, start + last, wanted)

    with torch.no_grad(), _evaluation(origin.model), _bar(n, progress) as advance:
        if path is None:
            out: dict[str, np.ndarray] = {}
            for first in range(0, n, chunk):
                part = values(first, min(first + chunk, n))
                for name, array in part.items():
                    if not first:
                        out[name] = np.empty(plan.arrays[name][2], dtype=array.dtype)
                    out[name][:, first : first + chunk] = array
                advance(min(first + chunk, n))
            return certified(plan.tree(out))
        return _to_zarr(ZarrStream(path, resume=resume), plan, values, request, chunk, advance)


def _to_zarr(target: ZarrStream, plan: Any, values: Any, request: dict[str, Any], chunk: int, advance: Any) -> xarray.DataTree:
    n = request["n"]
    probe = values(0, 1)
    try:
        if target.resume and target.is_complete(request, probe["x"]):
            target.certify(plan.skeleton["/"].attrs.get("certificate"))
            return read_draws(target.path)
        target.open(plan.only(probe), {name: array.dtype for name, array in probe.items()}, request, chunk)
        if target.done:
            target.compare(probe["x"])
            target.certify(plan.skeleton["/"].attrs.get("certificate"))
        while target.done < n:
            target.write(values(target.done, min(target.done + target.chunk, n)))
            advance(target.done)
        target.finish()
    except OSError as error:
        target.abandon()
        raise UserError(f"{target.path}: the draws cannot be written: {reason(error)}") from error
    except BaseException:
        target.abandon()
        raise
    return read_draws(target.path)


def _values(origin: Source, seed: int, stream: int, first: int, last: int, density: bool) -> dict[str, np.ndarray]:
    index = torch.arange(first, last, device=origin.device)[:, None]
    streams = torch.arange(stream, stream + origin.batch_shape.numel(), device=origin.device)
    u = uniform(seed, streams, index, origin.uniforms).reshape(last - first, *origin.batch_shape, origin.uniforms)
    shape = u.shape[:-1]
    found = origin.draw(u, density)
    x = found.x.expand(*shape, *origin.event_shape)
    absurd = int((~torch.isfinite(x)).reshape(*shape, -1).any(-1).sum())
    if absurd:
        raise UserError(
            f"draws {first} to {last - 1}: {absurd} of {shape.numel()} are not finite; "
            "the model has diverged, or the condition is far outside what it was trained on"
        )
    out = {"x": numpy_of(x if origin.quantise is None else origin.quantise(x))[None]}
    if found.log_prob is not None:
        bad = int((~torch.isfinite(found.log_prob.expand(shape))).sum())
        if bad:
            _log.warning("draws %d to %d: the log-density of %d is not finite", first, last - 1, bad)
        out["log_prob"] = numpy_of(found.log_prob.expand(shape))[None]
        if found.standard_error is not None:
            out["log_prob_standard_error"] = numpy_of(found.standard_error.expand(shape))[None]
    if found.evaluations is not None:
        count = torch.as_tensor(found.evaluations).to(torch.int64)
        out["n_velocity_evaluations"] = numpy_of(count.expand(shape))[None]
    return out


def _check_condition(context: Any) -> None:
    """Refuse a bound condition that is not finite: every draw of that batch element would be spoilt."""
    if not isinstance(context, torch.Tensor) or bool(torch.isfinite(context).all()):
        return
    bad = (~torch.isfinite(context)).any(-1).reshape(-1)
    raise UserError(
        f"the condition is not finite in {int(bad.sum())} of {len(bad)} batch elements "
        f"(first in number {int(bad.int().argmax())}): remove or mend them"
    )


def _default_chunk(origin: Source, n: int) -> int:
    batch = max(1, origin.batch_shape.numel())
    width = max(1, origin.uniforms, origin.event_shape.numel())
    return max(1, min(n, _ROWS // batch, _NUMBERS // (batch * width)))


@contextlib.contextmanager
def _evaluation(model: torch.nn.Module | None) -> Iterator[None]:
    training = [module for module in model.modules() if module.training] if model is not None else []
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _bar(n: int, wanted: bool) -> Iterator[Any]:
    from rich.console import Console
    from rich.progress import Progress

    console, began = Console(stderr=True), time.monotonic()
    bars: list[Progress] = []

    def advance(done: int) -> None:
        if not bars and wanted and console.is_terminal and time.monotonic() - began > 2 and done < n:
            bars.append(Progress(console=console, transient=True))
            bars[0].start()
            bars[0].add_task("draws", total=n)
        for bar in bars:
            bar.update(bar.task_ids[0], completed=done)

    try:
        yield advance
    finally:
        for bar in bars:
            bar.stop()
