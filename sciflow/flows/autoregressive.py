"""Autoregressive layers: every feature is mapped given those before it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from sciflow.flows.coupling import mapped
from sciflow.flows.elementwise import Elementwise
from sciflow.flows.layered import Layer
from sciflow.networks import MLP, Constant, MaskedMLP

__all__ = ["Autoregressive"]


class Autoregressive(Layer):
    r"""y_i = f(x_i; network(x_{<i}, mask, context)) in a given order of the features.

    Towards the latent all features are mapped at once. Towards the data they come one after the other, but the network
    is worked through once in total: step i computes only the hidden units of degree i (see `MaskedMLP`).

    Arguments:
        order: the features in the order in which they are sampled.
        groups: pairs (elementwise map, features), together all features.

    Source: Masked Autoregressive Flow for Density Estimation, Papamakarios et al. 2017, arXiv 1705.07057.
    """

    network: Any
    _order: Tensor
    _restore: Tensor
    _by_group: Tensor
    _ungroup: Tensor

    def __init__(
        self,
        order: Sequence[int],
        groups: Sequence[tuple[Elementwise, Sequence[int]]],
        context: int = 0,
        *,
        hidden: Sequence[int] = (128, 128),
        activation: str = "relu",
        maskable: bool = False,
        circles: dict[int, float] | None = None,
    ) -> None:
        super().__init__()
        circles = circles or {}
        order = list(order)
        self.features, self.maskable = len(order), maskable
        # positions, not features, from here on
        self.groups = [(map_, [order.index(feature) for feature in members]) for map_, members in groups if len(members)]
        self._map_of = {position: map_ for map_, members in self.groups for position in members}
        self._rates_of = [torch.pi / circles[feature] if feature in circles else None for feature in order]
        self._order_list = order
        by_group = [position for _, members in self.groups for position in members]
        self.register_buffer("_order", torch.tensor(order), persistent=False)
        self.register_buffer("_restore", torch.tensor(order).argsort(), persistent=False)
        self._regroup = by_group != list(range(len(order)))
        self.register_buffer("_by_group", torch.tensor(by_group), persistent=False)
        self.register_buffer("_ungroup", torch.tensor(by_group).argsort(), persistent=False)
        context += self.features if maskable else 0
        outputs = [(map_.parameters, members) for map_, members in self.groups]
        inputs = [1 if rate is None else 2 for rate in self._rates_of]
        if self.features == 1:  # nothing before it: an ordinary network of the context, or free parameters
            count = outputs[0][0]
            self.network = MLP(context, count, hidden, activation=activation) if context else Constant(count)
        else:
            self.network = MaskedMLP(inputs, outputs, context, hidden, activation=activation)

    def extra_repr(self) -> str:
        return f"order {self._order_list}"

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        x = x.index_select(0, self._order)
        context = self._context(x, context, mask)
        alone = (x if context is None else context,)
        raw = self.network(*alone if self.features == 1 else (self._inputs(x), context))
        rows = x.index_select(0, self._by_group) if self._regroup else x
        y, ladj = mapped(self.groups, rows, raw.to(x.dtype), inverse=False)
        if self._regroup:
            y, ladj = y.index_select(0, self._ungroup), ladj.index_select(0, self._ungroup)
        if mask is not None:
            present = mask.index_select(0, self._order)
            y, ladj = torch.where(present, y, 0), torch.where(present, ladj, 0)
        return y.index_select(0, self._restore), ladj.sum(0)

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        context = self._context(z, context, mask)
        if self.features == 1:
            only = self.network(z if context is None else context).unsqueeze(1)
        else:
            steps = self.network.start(context, z.shape[1])
        known: list[Tensor] = []
        total = z.new_zeros(z.shape[1])
        previous: Tensor | None = None
        for position, feature in enumerate(self._order_list):
            parameters = (steps.step(position, previous) if self.features > 1 else only).to(z.dtype)
            x, ladj = self._map_of[position](z[feature : feature + 1], parameters, inverse=True)
            if mask is not None:
                present = mask[feature : feature + 1]
                x, ladj = torch.where(present, x, 0), torch.where(present, ladj, 0)
            known.append(x)
            total = total + ladj[0]
            previous = self._input(position, x)
        return torch.cat(known).index_select(0, self._restore), total

    def _input(self, position: int, x: Tensor) -> Tensor:
        rate = self._rates_of[position]
        return x if rate is None else torch.cat(((x * rate).cos(), (x * rate).sin()))

    def _inputs(self, x: Tensor) -> Tensor:
        if all(rate is None for rate in self._rates_of):
            return x
        return torch.cat([self._input(position, x[position : position + 1]) for position in range(self.features)])

    def _context(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor | None:
        if not self.maskable:
            return context
        present = x.new_ones(x.shape) if mask is None else mask.to(x.dtype)
        return present if context is None else torch.cat((present, context.to(x.dtype)))
