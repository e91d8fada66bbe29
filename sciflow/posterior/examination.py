"""The certificate of draws in a tree, held against the draws themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import xarray

from sciflow.certificate import Certificate, Test
from sciflow.errors import UserError
from sciflow.files import reason
from sciflow.store import certificate_of
from sciflow.store.binding import HASHES, bound

__all__ = ["examined"]

_NUMBERS = 2**23  # read at once


def examined(tree: xarray.DataTree) -> Certificate:
    """The certificate in the tree, with an item for each fault of the draws beside it.

    - Without sha256 of the arrays: an item that was not evaluated, so that the verdict is "incomplete" at best.
    - With draws that are not finite: a failed one. Observations of `sample_many` whose failure is recorded do not count.
    - With log-weights that are NaN or +inf, or all -inf: a failed one.

    Raises `UserError` if there is no certificate, if the hashes in it are those of other arrays, or if arrays cannot be read.
    """
    certificate = certificate_of(tree)
    if certificate is None:
        raise UserError("the draws have no certificate: run a method of sciflow.posterior, or attach one")
    found = []
    try:
        if HASHES in certificate.context:
            bound(certificate, tree)
        else:
            found.append(
                Test("draws are those of the certificate", None,
                     description="the certificate has no sha256 of the draws; write the draws again")
            )  # fmt: skip
        found += _faults(tree)
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:  # whatever decoding a damaged chunk raises
        raise UserError(f"the arrays cannot be read, the file is damaged or cut short: {reason(error)[:200]}") from error
    return certificate.extended(found) if found else certificate


def _faults(tree: xarray.DataTree) -> list[Test]:
    group = "posterior" if "posterior" in tree.children else "estimate"
    stats: Any = tree["sample_stats"] if "sample_stats" in tree.children else {}
    failed = np.array([bool(str(text)) for text in stats["failure"].values]) if "failure" in stats else None
    bad = rows = 0
    for number, block in _blocks(tree[group]["x"].variable):  # type: ignore[union-attr]
        lost = ~np.isfinite(block)
        if failed is not None:
            lost = lost[~failed[number : number + len(lost)]]
        bad, rows = bad + int(lost.sum()), rows + lost.size
    found = []
    if bad:
        share, text = bad / rows, f"{bad} of {rows} numbers of the draws are NaN or infinite"
        found.append(Test("numbers of the draws that are not finite", share, 0, "<=", description=text))
    if "log_weight" in stats:
        weights = stats["log_weight"].values
        several = weights.reshape(len(weights), -1)[~failed] if failed is not None else weights.reshape(1, -1)
        useless = int((np.isnan(several) | (several == np.inf)).any(1).sum() + (several == -np.inf).all(1).sum())
        if useless:
            text = "log-weights are NaN or +inf, or all draws have weight 0: weighted means do not exist"
            found.append(Test("sets of draws without usable weights", useless, 0, "<=", description=text))
    return found


def _blocks(variable: xarray.Variable) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of the first dimension, with the number of the first of them."""
    step = max(1, _NUMBERS // max(variable.size // max(len(variable), 1), 1))
    for start in range(0, len(variable), step):
        yield start, variable[start : start + step].values
