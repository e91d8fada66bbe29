"""The contract of guidance: a field that wraps a field."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

from torch import nn

from sciflow.errors import UserError
from sciflow.transport.field import Field
from sciflow.transport.part import Part

__all__ = ["Guidance", "guidance_list"]


class Guidance(nn.Module, Part, ABC):
    """Field -> Field. May own weights (a classifier). At strength 0, or 1 for classifier-free, it is the identity, to the bit.

    A guided field is an ODE as any other, so the flow keeps a density, that of the guided draws; `no_density` is the reason
    where it does not.
    """

    identity: float = 0.0  # the strength that changes nothing
    no_density: str | None = None
    singular: bool = False  # its velocity is singular at t = 1: no stage of a stepper may be there

    def need_place(self, field: Field, other: Field) -> None:
        """Raises `UserError` if two fields are about points in different places."""
        reason = field.moved or other.moved
        if field.moved != other.moved and reason is not None:
            raise UserError(f"{type(self).__name__} compares velocities at the same points, but {reason}: put it before that")

    @abstractmethod
    def forward(self, field: Field) -> Field:
        """The guided field, on the same path and space."""

    def __repr__(self) -> str:
        return Part.__repr__(self)


def guidance_list(parts: Any) -> nn.ModuleList:
    """Guidance in the order given. Raises `UserError` for anything else than a list of it."""
    parts = list(parts) if isinstance(parts, (list, tuple, nn.ModuleList)) else [parts]
    for part in parts:
        if not isinstance(part, Guidance):
            found = f"the class {part.__name__}" if isinstance(part, type) else f"a {type(part).__name__}"
            raise UserError(f"guidance is {found}: give a list such as [ClassifierFree(1.5)]")
    return nn.ModuleList(parts)
