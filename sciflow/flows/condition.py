"""Conditions: a tensor or a nested dict of tensors, and the encoders that turn them into a context."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from sciflow.recorded import Recorded

__all__ = ["Condition", "ConditionSpec", "Concatenate", "Encoder", "encoder_for"]

Condition: TypeAlias = Tensor | Mapping[str, Any] | None
ConditionSpec: TypeAlias = int | Mapping[str, Any]


class Encoder(nn.Module, Recorded, ABC):
    """Maps a condition to a context tensor (..., features), or to None where there is no condition.

    An encoder owns the checks of its condition: missing, superfluous or ill-shaped entries raise `ValueError` with
    both shapes in the message.
    """

    features: int

    @abstractmethod
    def forward(self, condition: Condition) -> Tensor | None: ...


class Concatenate(Encoder):
    """Flattens every leaf to its last axes and concatenates the leaves in the order of their sorted names.

    Arguments:
        spec: 0 for no condition; an integer C for a tensor (..., C); a mapping from names to integers, to event shapes
            (tuples) or to further mappings.

    >>> encoder = Concatenate({"pt": 1, "image": (2, 3)})
    >>> encoder.features
    7
    >>> encoder({"pt": torch.zeros(5, 1), "image": torch.zeros(5, 2, 3)}).shape
    torch.Size([5, 7])
    >>> encoder({"pt": torch.zeros(5, 1)})
    Traceback (most recent call last):
    ...
    ValueError: the condition lacks 'image'; it has 'pt', the flow expects 'image', 'pt'
    """

    def __init__(self, spec: ConditionSpec) -> None:
        super().__init__()
        self.spec = spec
        self.features = _count(spec)
        if self.features == 0 and isinstance(spec, Mapping):
            raise ValueError(f"condition={spec!r} names no features: give 0 for no condition")

    def forward(self, condition: Condition) -> Tensor | None:
        if self.features == 0 and not isinstance(self.spec, Mapping):
            if condition is not None:
                raise ValueError(f"the flow was built without a condition (condition=0) but got {_describe(condition)}")
            return None
        if condition is None:
            raise ValueError(f"the flow needs a condition of shape {_expected(self.spec)} but got none")
        leaves = _leaves(self.spec, condition, "")
        try:
            batch = torch.broadcast_shapes(*(leaf.shape[:-1] for leaf in leaves))
        except RuntimeError as error:
            shapes = sorted({tuple(leaf.shape[:-1]) for leaf in leaves})
            raise ValueError(f"the entries of the condition have the batch shapes {shapes}: they do not broadcast") from error
        if len(leaves) == 1:
            return leaves[0]
        return torch.cat([leaf.expand(*batch, leaf.shape[-1]) for leaf in leaves], dim=-1)


def encoder_for(spec: ConditionSpec) -> Encoder:
    """The default encoder of a condition specification."""
    return Concatenate(spec)


def _count(spec: Any) -> int:
    if isinstance(spec, Mapping):
        return sum(_count(entry) for entry in spec.values())
    shape = (spec,) if isinstance(spec, int) else tuple(spec)
    if any(size < 0 for size in shape) or not shape:
        raise ValueError(f"a condition has a number of features or an event shape such as (2, 3), not {spec!r}")
    return math.prod(shape)


def _leaves(spec: Any, condition: Any, path: str) -> list[Tensor]:
    name = f" {path!r}" if path else ""
    if isinstance(spec, Mapping):
        if not isinstance(condition, Mapping):
            raise ValueError(f"the condition{name} is {_describe(condition)}, expected a mapping {_expected(spec)}")
        lacking, superfluous = sorted(set(spec) - set(condition)), sorted(set(condition) - set(spec))
        if lacking or superfluous:
            problem = f"lacks {_names(lacking)}" if lacking else f"has the superfluous {_names(superfluous)}"
            raise ValueError(f"the condition{name} {problem}; it has {_names(condition)}, the flow expects {_names(spec)}")
        return [leaf for key in sorted(spec) for leaf in _leaves(spec[key], condition[key], f"{path}.{key}".lstrip("."))]
    event = (spec,) if isinstance(spec, int) else tuple(spec)
    if not isinstance(condition, Tensor) or condition.dim() < len(event) or tuple(condition.shape[-len(event) :]) != event:
        raise ValueError(f"the condition{name} is {_describe(condition)}, expected {_expected(spec)}")
    return [condition.flatten(-len(event)) if len(event) > 1 else condition]


def _names(names: Any) -> str:
    return ", ".join(repr(name) for name in sorted(names)) or "nothing"


def _describe(condition: Any) -> str:
    if isinstance(condition, Tensor):
        return f"a tensor of shape {tuple(condition.shape)}"
    return f"a mapping with {_names(condition)}" if isinstance(condition, Mapping) else f"a {type(condition).__name__}"


def _expected(spec: Any) -> str:
    if isinstance(spec, Mapping):
        return "{" + ", ".join(f"{key!r}: {_expected(spec[key])}" for key in sorted(spec)) + "}"
    return f"(..., {spec})" if isinstance(spec, int) else f"(..., {', '.join(map(str, spec))})"
