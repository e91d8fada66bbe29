"""The contract of guidance: a field that wraps a field."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import nn

from sciflow.transport.field import Field
from sciflow.transport.part import Part

__all__ = ["Guidance"]


class Guidance(nn.Module, Part, ABC):
    """Field -> Field. May own weights (a classifier). At strength 0, or 1 for classifier-free, it is the identity, to the bit.

    A guided field is an ODE as any other, so the flow keeps a density, that of the guided draws; `no_density` is the reason
    where it does not.
    """

    identity: float = 0.0  # the strength that changes nothing
    no_density: str | None = None

    @abstractmethod
    def forward(self, field: Field) -> Field:
        """The guided field, on the same path and space."""

    def __repr__(self) -> str:
        return Part.__repr__(self)
