"""Results and the sha256 that ties their certificate to them."""

from __future__ import annotations

from dataclasses import replace

import xarray

from sciflow.errors import UserError
from sciflow.posterior.randomness import Randomness
from sciflow.posterior.resampling import systematic
from sciflow.posterior.result import Result
from sciflow.store.binding import HASHES, array_hashes, differing
from sciflow.store.tree import numpy_of

__all__ = ["check_bound", "resampled"]


def resampled(result: Result, seed: int) -> Result:
    """One chain of equally weighted draws with all that is known of each; the result itself if it is not weighted."""
    if result.log_weight is None:
        return result
    if not bool(result.weights.isfinite().all()):
        raise UserError("the draws cannot be resampled: all weights are 0, or some are NaN or infinite")
    randomness, count = Randomness(seed, "resampled", device=result.x.device), len(result.rows)
    index = systematic(result.weights, count, randomness.uniform(1, 1)[0, 0])
    index = index[randomness.uniform(count, 1)[:, 0].argsort()]  # duplicates apart: no false autocorrelation
    found = {
        name: getattr(result, name).flatten()[index].unsqueeze(0)
        for name in ("log_prob", "log_likelihood", "log_proposal")
        if getattr(result, name) is not None
    }
    context = {name: entry for name, entry in result.certificate.context.items() if name != HASHES}
    context["resampled"] = {"seed": seed, "of": _hashes(result)}
    certificate = replace(result.certificate, context=context)
    return replace(result, x=result.rows[index].unsqueeze(0), log_weight=None, certificate=certificate, **found)


def _hashes(result: Result) -> dict[str, str]:
    """Those of the draws and their weights."""
    x = numpy_of(result.x)
    groups = {result.group: xarray.Dataset({"x": ([f"d{k}" for k in range(x.ndim)], x)})}
    if result.log_weight is not None:
        groups["sample_stats"] = xarray.Dataset({"log_weight": (["chain", "draw"], numpy_of(result.log_weight))})
    return array_hashes(xarray.DataTree.from_dict(groups))


def check_bound(result: Result) -> None:
    """A certificate that was read with draws is a certificate of these alone."""
    stated = result.certificate.context.get(HASHES)
    if stated is not None:
        now = _hashes(result)
        mentioned = {name: entry for name, entry in stated.items() if name.endswith(("/x", "/log_weight"))}
        if names := differing(mentioned, now):
            raise UserError(
                f"the certificate belongs to other draws: the sha256 of {', '.join(names)} is another one; run the method "
                "again, or give the changed draws a certificate of their own"
            )
