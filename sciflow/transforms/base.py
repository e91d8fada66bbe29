"""The contract of a transform: a bijection without weights, and its inverse."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor

__all__ = ["Inverse", "Transform", "summed"]


class Transform(ABC):
    r"""A bijection y = f(x) that holds its parameters as plain tensors, with its log-determinant.

    Networks make the tensors, a transform does the mathematics: gradients flow to whatever made them.

    `event_dim` is 0 for elementwise maps, whose ladj = log |dy/dx| has the shape of x, and 1 for maps of vectors on the
    last axis, whose ladj = log |det dy/dx| lacks that axis. Device and dtype of the result are those of x.
    """

    event_dim: int = 0

    def __call__(self, x: Tensor) -> Tensor:
        """y = f(x)."""
        return self.call_and_ladj(x)[0]

    @abstractmethod
    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """y = f(x) and the log-determinant of f at x."""

    @abstractmethod
    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """x with f(x) = y and the log-determinant of the inverse at y."""

    @property
    def inv(self) -> Transform:
        """The inverse as a transform."""
        return Inverse(self)


class Inverse(Transform):
    """A transform the other way round; the inverse of the inverse is the transform itself.

    >>> from sciflow.transforms import Affine
    >>> import torch
    >>> Affine(torch.tensor(1.0), torch.tensor(2.0)).inv
    Inverse(Affine(()))
    """

    def __init__(self, transform: Transform) -> None:
        self.transform = transform
        self.event_dim = transform.event_dim

    def call_and_ladj(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.inverse_and_ladj(x)

    def inverse_and_ladj(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return self.transform.call_and_ladj(y)

    @property
    def inv(self) -> Transform:
        return self.transform

    def __repr__(self) -> str:
        return f"Inverse({self.transform!r})"


def summed(ladj: Tensor, event_dim: int, to: int) -> Tensor:
    """A log-determinant of events with `event_dim` axes as one of events with `to` >= `event_dim` axes."""
    return ladj.flatten(ladj.dim() - (to - event_dim)).sum(-1) if to > event_dim else ladj
