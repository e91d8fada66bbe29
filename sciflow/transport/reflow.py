"""Pairs of noise and data that a trained flow joins."""

from __future__ import annotations

import torch
from torch import Tensor

from sciflow import noise
from sciflow.errors import UserError
from sciflow.flows.condition import Condition
from sciflow.training import Batch
from sciflow.training.data import map_tensors
from sciflow.transport.flow import TransportFlow
from sciflow.transport.steppers.base import Stepper

__all__ = ["reflow_pairs"]


@torch.no_grad()
def reflow_pairs(
    flow: TransportFlow, rows: int | None = None, condition: Condition = None, *, x: Tensor | None = None,
    mask: Tensor | None = None, stepper: Stepper | None = None, seed: int = 0, chunk: int = 16384,
) -> Batch:  # fmt: skip
    """Training data for `Reflow`: a `Batch` with `source` x_0, the flow's noise, and `x` x_1, where the flow takes it.

    Give the new flow the base of this one.

    Arguments:
        rows: number of pairs; needed for a flow without condition.
        condition: one per pair; with `rows` too, its rows are repeated in turn.
        x: real data (rows, *event): they are followed back to their noise instead, so that x is true and x_0 approximate.
        mask: (rows, *event), present features.
        stepper: how the flow is followed; its own by default.
        seed: of the noise: pair i depends on (seed, i) and its condition alone, whatever the chunk.

    Source: Flow Straight and Fast, Liu et al. 2022, arXiv 2209.03003. Pairs from real data: Improving the Training of
    Rectified Flows, Lee et al. 2024, arXiv 2405.20320.

    >>> flow = TransportFlow(2, network={"hidden": (8,)})
    >>> reflow_pairs(flow, 5).source.shape
    torch.Size([5, 2])
    """
    if flow.no_base is not None:
        raise UserError(f"no pairs of noise and data: {flow.no_base}")
    given = x if x is not None else _first(condition) if condition is not None else mask
    if rows is None and given is None:
        raise UserError("how many pairs? Give rows, or a condition or data x with as many rows")
    count = len(given) if rows is None and given is not None else int(rows or 0)
    if count < 1 or (x is not None and len(x) != count):
        raise UserError(f"rows={rows}: give a positive number, and for data x their {0 if x is None else len(x)} rows or none")
    if condition is not None:
        length = len(_first(condition))
        take = torch.arange(count) % length
        condition = map_tensors(lambda leaf: leaf.index_select(0, take.to(leaf.device)), condition)
    follower = flow if stepper is None else flow.sampling(stepper=stepper)
    context = flow.encoder(condition)
    reference = flow.reference(context)
    ends: list[tuple[Tensor, Tensor]] = []
    for index in torch.arange(count).split(chunk):
        part = slice(int(index[0]), int(index[-1]) + 1)
        c = None if context is None else context[part].to(reference)
        m = None if mask is None else mask[part].to(reference.device)
        if x is None:
            uniform = noise.uniform(seed, "reflow", index.to(reference.device), flow.base.uniforms)
            x0 = flow.base.from_uniform(uniform, c, m).to(reference.dtype)
            ends.append((x0, follower.solve(x0, c, m, 0.0, 1.0, density=False).x))
        else:
            x1 = x[part].to(reference)
            ends.append((follower.solve(x1, c, m, 1.0, 0.0, density=False).x, x1))
    source, reached = (torch.cat(side) for side in zip(*ends, strict=True))
    return Batch(reached, condition, mask=mask, source=source)


def _first(condition: Condition) -> Tensor:
    while not isinstance(condition, Tensor):
        assert condition is not None
        condition = next(iter(condition.values()))
    return condition
