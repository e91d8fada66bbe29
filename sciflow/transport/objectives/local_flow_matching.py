"""Local flow matching: a chain of small flows, each of which learns a part of the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from sciflow.errors import UserError
from sciflow.flows import Flow
from sciflow.flows.condition import ConditionSpec
from sciflow.flows.draws import Draws
from sciflow.training import Batch, FitResult, fit
from sciflow.training.data import as_batch
from sciflow.transport.flow import TransportFlow
from sciflow.transport.objectives.flow_matching import FlowMatching
from sciflow.transport.pair import Pair

__all__ = ["LocalFlow", "LocalFlowMatching", "fit_local"]


class LocalFlowMatching(FlowMatching):
    r"""Flow matching from x_0 = d x_1 + sqrt(1 - d^2) g to the data x_1, d = exp(-time): an Ornstein-Uhlenbeck step back.

    For the blocks of a chain, see `LocalFlow`: x_0 is not distributed as the base, from which g is drawn.
    """

    euclidean_only = True

    def __init__(self, decay: float, **options: Any) -> None:
        super().__init__(**options)
        if not 0 <= decay < 1:
            raise UserError(f"decay={decay}: it lies in [0, 1), and 0 is the whole way to the noise")
        self.decay = decay

    def pair(self, flow: TransportFlow, batch: Batch) -> Pair:
        if batch.source is not None:
            raise UserError("a chain of flows leads to noise: given sources have no place in it, use FlowMatching")
        pair = super().pair(flow, batch)
        return pair._replace(x0=self.decay * pair.x1 + (1 - self.decay**2) ** 0.5 * pair.x0)

    def extra_repr(self) -> str:
        return f"decay={self.decay}, {super().extra_repr()}"


class LocalFlow(Flow):
    r"""Blocks in a chain, base -> blocks[-1] -> ... -> blocks[0] -> data; each is a `TransportFlow`; trained by `fit_local`.

    Block k carries the data as the blocks before it see them a short way towards the noise: the ends of a block are near each
    other, so that small networks and few solver steps do. The density is the product of all, exact as each block's.

    Arguments:
        event_shape, condition, maskable: as for every `Flow`.
        decays: what is left of the data after each block; the last one 0, so that the chain ends at the noise (the paper
            stops close to it).
        block: arguments of every `TransportFlow`, such as {"network": {"hidden": (64, 64)}}.

    Source: Local Flow Matching Generative Models, Xu et al. 2024, arXiv 2410.02548.
    """

    def __init__(
        self, event_shape: int | tuple[int, ...], condition: ConditionSpec = 0, *, decays: Sequence[float] = (0.8, 0.5, 0.0),
        block: Mapping[str, Any] | None = None, maskable: bool = False,
    ) -> None:  # fmt: skip
        super().__init__(event_shape, condition, maskable=maskable)
        if not decays or decays[-1] != 0:
            raise UserError(f"decays={decays!r}: the last one is 0, so that the chain ends at the base")
        foreign = sorted({"base", "guidance", "target_shift"}.intersection(block or {}))
        if foreign or getattr((block or {}).get("stepper"), "needs_score", False):
            raise UserError(f"a block has no {foreign or 'score'} of its own: it joins data to noisier data, not to a base")
        self.decays = tuple(decays)
        shape, features = tuple(self.event_shape), self.encoder.features
        self.blocks = nn.ModuleList(TransportFlow(shape, features, maskable=maskable, **(block or {})) for _ in decays)

    @property
    def no_density(self) -> str | None:
        return next((reason for block in self.blocks if (reason := cast(TransportFlow, block).no_density)), None)

    def from_base(self, z: Tensor, context: Tensor | None, mask: Tensor | None, *, density: bool = True) -> Draws:
        x = z.to(self.reference(context).dtype)
        log_prob, error, count = self.base.log_prob(x, context, mask) if density else None, None, cast(Any, 0)
        for block in reversed(list(self.blocks)):
            x, found, evaluations = cast(TransportFlow, block).solve(x, context, mask, 0.0, 1.0, density=density)
            count = count + evaluations
            if log_prob is not None and found is not None:
                log_prob, own = log_prob - found.value, found.standard_error
                error = own if error is None or own is None else torch.hypot(error, own)  # the probes are independent
        return Draws(x, log_prob, error, count)

    def to_latent(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        total = x.new_zeros(len(x))
        for block in self.blocks:
            x, ladj = cast(TransportFlow, block).to_latent(x, context, mask)
            total = total + ladj
        return x, total

    def to_data(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        total = z.new_zeros(len(z))
        for block in reversed(list(self.blocks)):
            z, ladj = cast(TransportFlow, block).to_data(z, context, mask)
            total = total + ladj
        return z, total


def fit_local(flow: LocalFlow, data: Any, **options: Any) -> list[FitResult]:
    """Train block after block, each on what the ones before it made of the data; `options` are those of `fit`."""
    batch = as_batch(data)
    reference = flow.reference()
    context = flow.encoder(batch.condition)
    context = None if context is None else context.to(reference)
    batch = batch._replace(x=batch.x.to(reference), condition=context)
    results = []
    for block, decay in zip(flow.blocks, flow.decays, strict=True):
        assert isinstance(block, TransportFlow)
        results.append(fit(block, batch, objective=LocalFlowMatching(decay), **options))
        with torch.no_grad():
            moved = block.solve(batch.x, context, batch.mask, 1.0, 0.0, density=False).x
        batch = batch._replace(x=moved)
    return results
