"""Independent bases side by side."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from sciflow.distributions.base import Base
from sciflow.errors import UserError

__all__ = ["Product"]


class Product(Base):
    r"""p(z) = prod_g p_g(z[features_g]): one base for each group of features.

    Raises `UserError` unless every feature 0 .. D-1 is in exactly one group of the size of its base.

    >>> from sciflow.distributions import CircleUniform, DiagonalNormal
    >>> base = Product([DiagonalNormal(2), CircleUniform(1)], [[0, 2], [1]])
    >>> base.event_shape, base.uniforms
    (torch.Size([3]), 3)
    """

    _restore: Tensor

    def __init__(self, bases: Sequence[Base], features: Sequence[Sequence[int]]) -> None:
        super().__init__()
        members = [list(group) for group in features]
        order = [feature for group in members for feature in group]
        sizes = [tuple(base.event_shape) for base in bases]
        if [(len(group),) for group in members] != sizes or sorted(order) != list(range(len(order))):
            raise UserError(f"the groups {members} do not share out the features among bases of event shapes {sizes}")
        self.bases = nn.ModuleList(bases)
        self.members = members
        self.event_shape = torch.Size((len(order),))
        self.circles = {
            group[place]: bound
            for base, group in zip(bases, members, strict=True)
            for place, bound in getattr(base, "circles", {}).items()
        }
        self.heavy_tailed = any(getattr(base, "heavy_tailed", False) for base in bases)
        self.register_buffer("_restore", torch.tensor(order).argsort(), persistent=False)

    @property
    def _parts(self) -> list[Base]:
        return list(self.bases)  # type: ignore[arg-type]

    @property
    def uniforms(self) -> int:
        return sum(base.uniforms for base in self._parts)

    def extra_repr(self) -> str:
        return f"features={self.members}"

    def from_uniform(self, uniform: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        shares = uniform.split([base.uniforms for base in self._parts], dim=1)
        parts = [
            base.from_uniform(share, context, None if mask is None else mask[:, group])
            for base, share, group in zip(self._parts, shares, self.members, strict=True)
        ]
        return torch.cat(parts, dim=1).index_select(1, self._restore)

    def rsample(
        self,
        rows: int,
        context: Tensor | None = None,
        mask: Tensor | None = None,
        *,
        device: torch.device | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        parts = [
            base.rsample(rows, context, None if mask is None else mask[:, group], device=device, dtype=dtype)
            for base, group in zip(self._parts, self.members, strict=True)
        ]
        return torch.cat(parts, dim=1).index_select(1, self._restore)

    def log_prob(self, z: Tensor, context: Tensor | None = None, mask: Tensor | None = None) -> Tensor:
        terms = [
            base.log_prob(z[:, group], context, None if mask is None else mask[:, group])
            for base, group in zip(self._parts, self.members, strict=True)
        ]
        return torch.stack(terms).sum(0)
