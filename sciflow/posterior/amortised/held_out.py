"""Which simulations a model has seen, and draws for many held-out observations at once."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.posterior.amortised.scaling import parts, rows_of
from sciflow.posterior.randomness import Randomness
from sciflow.recorded import Recorded
from sciflow.store.tree import numpy_of

if TYPE_CHECKING:
    from sciflow.posterior.amortised.model import AmortisedPosterior

__all__ = ["SeenRows", "held_out_draws", "row_hashes"]

_ROUNDS = 200
_ROWS = 4096  # draws at once


def row_hashes(theta: Tensor, y: Any) -> Tensor:
    """64 bits for each pair (theta_i, y_i), of their values in single precision; missing entries count as 0: (N,), int64."""
    values, mask = parts(y)
    if mask is not None:
        values = torch.where(mask.reshape(*mask.shape, *[1] * (values.dim() - mask.dim())), values, 0)
    found = np.empty(len(theta), dtype=np.int64)
    for start in range(0, len(theta), 4096):
        piece = slice(start, start + 4096)
        rows = np.concatenate([numpy_of(entry[piece].flatten(1).float()) for entry in (theta, values)], 1) + np.float32(0)
        rows = np.ascontiguousarray(rows, dtype="<f4")  # + 0 makes -0 and 0 the same
        found[piece] = [int.from_bytes(hashlib.blake2b(row, digest_size=8).digest(), "little", signed=True) for row in rows]
    return torch.from_numpy(found)


class SeenRows(nn.Module, Recorded):
    """The hashes of all simulations a model was fitted to, validation included: they must not judge it.

    Arguments:
        count: how many.
    """

    hashes: Tensor

    def __init__(self, count: int) -> None:
        super().__init__()
        self.register_buffer("hashes", torch.zeros(count, dtype=torch.int64))

    @classmethod
    def of(cls, theta: Tensor, y: Any) -> SeenRows:
        found = cls(len(theta))
        found.hashes.copy_(row_hashes(theta, y).sort().values)
        return found

    def check(self, theta: Tensor, y: Any) -> None:
        """Raises `UserError` if some rows were seen, or some are there twice."""
        rows = row_hashes(theta, y)
        seen = int(torch.isin(rows, self.hashes.cpu()).sum())
        if seen:
            raise UserError(
                f"{seen} of {len(rows)} simulations are among those the posterior was trained on: it would be judged by what "
                "it has learned by heart; simulate new ones (another seed)"
            )
        twice = len(rows) - len(rows.unique())
        if twice:
            raise UserError(f"{twice} of {len(rows)} simulations are there twice: calibration needs independent ones")


@torch.no_grad()
def held_out_draws(posterior: AmortisedPosterior, y: Any, draws: int, randomness: Randomness) -> Tensor:
    """Draws of q(theta | y_i) for each row of data, by the rules of `posterior.draw`: (n, draws, D), float64.

    Draws outside of the prior are drawn again. Raises `UserError` if that does not end.
    """
    n, device = len(parts(y)[0]), posterior.weights.device
    bound = posterior.bind(rows_of(y, torch.arange(1)))
    step = max(1, _ROWS // draws)
    found = []
    for start in range(0, n, step):
        scaled = posterior.scaling(rows_of(y, torch.arange(start, min(start + step, n))))
        contexts = [flow(scaled).context for flow in posterior.members]
        rows = min(step, n - start)
        contexts = [None if entry is None else entry.reshape(rows, -1).repeat_interleave(draws, 0) for entry in contexts]
        theta, left = torch.empty(0), torch.arange(rows * draws, device=device)
        for number in range(_ROUNDS):
            uniform = randomness.child(f"{start} {number}").uniform(len(left), bound.uniforms)
            drawn = bound.mapped(uniform, [None if entry is None else entry[left] for entry in contexts])
            if not number:
                theta = torch.empty_like(drawn)
            theta[left] = drawn
            left = left[~bound.in_prior(drawn)]
            if not len(left):
                break
        if len(left):
            raise UserError(f"{len(left)} of {rows * draws} draws stay outside of the prior: it is not the trained one")
        found.append(theta.reshape(rows, draws, -1))
    return torch.cat(found)
