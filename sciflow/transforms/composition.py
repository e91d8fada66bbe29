"""One transform after another."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor

from sciflow.transforms.base import Transform, summed

__all__ = ["Composition"]


class Composition(Transform):
    r"""y = f_n(... f_2(f_1(x))), ladj = sum of theirs; `event_dim` is the largest of theirs.

    >>> import torch
    >>> from sciflow.transforms import Affine, Permutation
    >>> shift = Affine(torch.tensor([1.0, 2.0]), torch.tensor([2.0, 2.0]))
    >>> transform = Composition([shift, Permutation([1, 0])])
    >>> transform
    Composition(Affine((2,)), Permutation([1, 0]))
    >>> transform.call_and_ladj(torch.tensor([0.0, 0.0]))
    (tensor([2., 1.]), tensor(1.3863))
    """

    def __init__(self, transforms: Iterable[Transform]) -> None:
        self.transforms = tuple(transforms)
        self.event_dim = max((transform.event_dim for transform in self.transforms), default=0)

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        total = summed(x.new_zeros(x.shape), 0, self.event_dim)
        for transform in self.transforms:
            x, ladj = transform.call_and_ladj(x)
            total = total + summed(ladj, transform.event_dim, self.event_dim)
        return x, total

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return Composition([transform.inv for transform in reversed(self.transforms)]).call_and_ladj(y)

    def __repr__(self) -> str:
        return f"Composition({', '.join(map(repr, self.transforms))})"
