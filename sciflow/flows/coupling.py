"""Coupling layers: some features are mapped given the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.flows.elementwise import Elementwise
from sciflow.flows.layered import Layer
from sciflow.networks import MLP, Constant

__all__ = ["Coupling", "coupling_splits"]


class Coupling(Layer):
    r"""y_A = x_A, y_B = f(x_B; network(x_A, mask, context)) with an elementwise f.

    The network is evaluated once in either direction, and its output (parameters x |B|, rows) is viewed as
    (parameters, |B|, rows) without a copy. Features on the circle enter the network as cosine and sine.

    Arguments:
        kept: the features A. The transformed features B are those of `groups`.
        groups: pairs (elementwise map, features).
        context: number of context rows.
        circles: half period of each feature that lives on a circle.

    Source: Density estimation using Real NVP, Dinh et al. 2016, arXiv 1605.08803.
    """

    _order: Tensor
    _restore: Tensor

    def __init__(
        self,
        kept: Sequence[int],
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
        groups = [(map_, tuple(members)) for map_, members in groups if len(members)]
        kept = sorted(kept, key=lambda feature: feature in circles)
        order = [*kept, *(feature for _, members in groups for feature in members)]
        self.features, self.kept = len(order), len(kept)
        self.maskable = maskable
        self.groups = groups
        self.register_buffer("_order", torch.tensor(order), persistent=False)
        self.register_buffer("_restore", torch.tensor(order).argsort(), persistent=False)
        # plain numbers: a buffer would be rounded to float32, and the flow had no exact period in float64
        self._rates = [torch.pi / circles[feature] for feature in kept if feature in circles]
        inputs = len(kept) + len(self._rates) + (self.features if maskable else 0) + context
        outputs = sum(map_.parameters * len(members) for map_, members in groups)
        self.network: nn.Module = MLP(inputs, outputs, hidden, activation=activation) if inputs else Constant(outputs)

    def extra_repr(self) -> str:
        order = self._order.tolist() if not self._order.is_meta else []
        return f"{order[self.kept :]} given {order[: self.kept]}"

    def forward(self, x: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._map(x, context, mask, inverse=False)

    def inverse(self, z: Tensor, context: Tensor | None, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        return self._map(z, context, mask, inverse=True)

    def _map(self, x: Tensor, context: Tensor | None, mask: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor]:
        rows = x.index_select(0, self._order)
        kept, changed = rows[: self.kept], rows[self.kept :]
        raw = self.network(self._inputs(kept, context, mask)).to(x.dtype)
        y, ladj = mapped(self.groups, changed, raw, inverse=inverse)
        if mask is not None:
            present = mask.index_select(0, self._order)[self.kept :]
            y, ladj = torch.where(present, y, 0), torch.where(present, ladj, 0)
        return torch.cat((kept, y)).index_select(0, self._restore), ladj.sum(0)

    def carried(self, x: Tensor, score: Tensor, context: Tensor | None, *, inverse: bool) -> tuple[Tensor, Tensor, Tensor]:
        r"""As `Layer.carried`, without the map in the other direction. With the elementwise slope f' and s = \nabla log p(x),

            s'_B = (s_B - d log f' / dx_B) / f',    s'_A = s_A - (dy_B/dx_A)^T s'_B - (d log f'/dx_A)^T 1:

        one vector-Jacobian product with the network.

        Source: Fast and unified path gradient estimators for normalizing flows, Vaitl et al. 2024, arXiv 2403.15881.
        """
        with torch.enable_grad():
            rows = (x if x.requires_grad else x.detach().requires_grad_()).index_select(0, self._order)
            kept, changed = rows[: self.kept], rows[self.kept :]
            raw = self.network(self._inputs(kept, context, None)).to(x.dtype)
            y, ladj, bend = mapped(self.groups, changed, raw, inverse=inverse, bent=True)
            before = score.index_select(0, self._order)
            up = (before[self.kept :] - bend) * torch.exp(-ladj.detach())
            down = before[: self.kept]
            if self.kept:
                (pull,) = torch.autograd.grad((y, ladj), kept, (up, torch.ones_like(ladj)), retain_graph=True)
                down = down - pull
            found = torch.cat((kept, y)).index_select(0, self._restore)
        return found, ladj.detach().sum(0), torch.cat((down, up)).index_select(0, self._restore)

    def _inputs(self, kept: Tensor, context: Tensor | None, mask: Tensor | None) -> Tensor:
        blocks = [kept]
        if self._rates:
            line = self.kept - len(self._rates)
            if len(set(self._rates)) == 1:
                angle = kept[line:] * self._rates[0]
            else:
                angle = torch.stack([row * rate for row, rate in zip(kept[line:], self._rates, strict=True)])
            blocks = [kept[:line], angle.cos(), angle.sin()]
        if self.maskable:
            shape = (self.features, kept.shape[1])
            blocks.append(kept.new_ones(shape) if mask is None else mask.to(kept.dtype))
        if context is not None:
            blocks.append(context if context.dtype == kept.dtype else context.to(kept.dtype))
        return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def mapped(
    groups: Sequence[tuple[Elementwise, Sequence[int]]], x: Tensor, raw: Tensor, *, inverse: bool, bent: bool = False
) -> tuple[Tensor, ...]:
    """Maps rows x, ordered group after group, by raw parameters (outputs, B) ordered in the same way.

    Returns y and ladj, and with `bent` d ladj / dx at fixed parameters.
    """
    results, row, number = [], 0, 0
    for map_, members in groups:
        count = len(members)
        parameters = raw[number : number + map_.parameters * count].view(map_.parameters, count, x.shape[1])
        part = x if len(groups) == 1 else x[row : row + count]
        results.append((map_.bent if bent else map_)(part, parameters, inverse=inverse))
        row, number = row + count, number + map_.parameters * count
    return results[0] if len(groups) == 1 else tuple(torch.cat(parts) for parts in zip(*results, strict=True))


def coupling_splits(features: int, layers: int, seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """The features (kept, transformed) by each coupling layer; layers come in pairs that swap the two parts.

    Pairs: even and odd features, first and second half, then random halves, so that over several pairs every feature
    meets every other.

    >>> coupling_splits(4, 3)
    [([0, 2], [1, 3]), ([1, 3], [0, 2]), ([0, 1], [2, 3])]
    >>> coupling_splits(1, 2)
    [([], [0]), ([], [0])]
    """
    if features == 1:
        return [([], [0]) for _ in range(layers)]
    generator = torch.Generator().manual_seed(seed)
    splits: list[tuple[list[int], list[int]]] = []
    everything = list(range(features))
    for pair in range((layers + 1) // 2):
        if pair == 0:
            first = everything[::2]
        elif pair == 1:
            first = everything[: (features + 1) // 2]
        else:
            first = sorted(torch.randperm(features, generator=generator)[: (features + 1) // 2].tolist())
        second = [feature for feature in everything if feature not in first]
        splits += [(first, second), (second, first)]
    return splits[:layers]
