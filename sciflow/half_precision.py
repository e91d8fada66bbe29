"""Weights in half of the bytes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from sciflow.errors import UserError

__all__ = ["halved", "widened"]


def halved(model: nn.Module, tensors: dict[str, Tensor]) -> list[str]:
    """Matrices and kernels of float32 among the parameters become float16 in `tensors`; returns their names.

    Raises `UserError` if one has a number beyond 65504.
    """
    names = []
    for name, _ in model.named_parameters():
        tensor = tensors.get(name)
        if tensor is not None and tensor.dtype is torch.float32 and tensor.dim() >= 2:
            small = tensor.half()
            if not bool(small.isfinite().all()):
                raise UserError(f"cannot save {name!r} of {type(model).__name__} in float16: it has numbers beyond 65504")
            tensors[name] = small
            names.append(name)
    return names


def widened(tensors: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """The tensors, those named as float32."""
    return {**tensors, **{name: tensors[name].float() for name in names}}
