"""A categorical endpoint: CatFlow."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow.errors import UserError
from sciflow.transport.heads.base import present_mean
from sciflow.transport.heads.endpoint import Endpoint
from sciflow.transport.pair import Bridge
from sciflow.transport.paths.base import Path

__all__ = ["CategoricalEndpoint"]


class CategoricalEndpoint(Endpoint):
    r"""Logits over the last axis of the event: E[x1 | xt] = softmax(out), by the cross entropy -sum_k x1_k log softmax(out)_k.

    Events (..., K) hold one-hot rows (or probabilities) over K categories; the loss is the mean over the rows that are
    present. A mask is the same for all categories of a row. Endpoints stay in the simplex, draws end near its vertices.

    Source: Variational Flow Matching for Graph Generation, Eijkelboom et al. 2024, arXiv 2406.04843.
    """

    def check_rows(self, x: Tensor, mask: Tensor | None) -> None:
        odd = (x < 0).any(-1) | ((x.sum(-1) - 1).abs() > 1e-3)
        odd = odd if mask is None else odd & mask.any(-1)
        if bool(odd.any()):
            first = int(odd.nonzero()[0, 0])
            raise UserError(
                f"x: {int(odd.sum())} categorical rows are no probabilities (first in event {first}): entries along the last "
                "axis are not negative and add up to 1, one-hot for a known category"
            )

    def endpoint(self, out: Tensor, xt: Tensor, t: Tensor, path: Path, mask: Tensor | None = None) -> Tensor:
        return torch.softmax(out.squeeze(1), -1)

    def nll(self, out: Tensor, bridge: Bridge, path: Path) -> Tensor:
        cross_entropy = -(bridge.pair.x1 * torch.log_softmax(out.squeeze(1), -1)).sum(-1)
        mask = bridge.pair.mask
        return present_mean(cross_entropy.unsqueeze(-1), None if mask is None else mask.any(-1, keepdim=True))
