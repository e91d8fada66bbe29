"""Tensors among the arguments of recorded objects: kept as text in the configuration, exactly."""

from __future__ import annotations

import base64
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sciflow.errors import UserError

__all__ = ["constant", "matched"]


def constant(owner: Any, name: str, value: Any, dtype: torch.dtype | None = None) -> Tensor:
    """The argument `name` of a `Recorded` owner as a tensor of its own, detached.

    Numbers and lists are recorded as they are; a tensor or array is recorded as dtype, shape and compressed bytes, so that
    what was measured (a mask, a point-spread function) is saved and loaded to the bit.

    Raises `UserError` if the value is no array of numbers.
    """
    if isinstance(value, Mapping):
        tensor = _decoded(name, value)
    else:
        try:
            # numbers and lists by way of numpy: in double precision, not in torch's default
            tensor = torch.as_tensor(value if isinstance(value, Tensor) else np.asarray(value)).detach().clone()
        except (TypeError, ValueError, RuntimeError) as error:
            raise UserError(f"{type(owner).__name__}: {name} is no array of numbers ({error})") from error
        recorded = getattr(owner, "recorded_arguments", {})
        if isinstance(value, (Tensor, np.ndarray)) and recorded.get(name) is value and not tensor.is_meta:
            recorded[name] = _encoded(tensor)
    return tensor if dtype is None else tensor.to(dtype)


def matched(value: Tensor, x: Tensor) -> Tensor:
    """A constant in the precision of x, and real or complex as it was."""
    dtype = x.real.dtype if x.is_complex() else x.dtype
    return value.to(dtype.to_complex() if value.is_complex() else dtype)


def _encoded(tensor: Tensor) -> dict[str, Any]:
    content = np.ascontiguousarray(tensor.resolve_conj().resolve_neg().cpu().numpy()).tobytes()
    text = base64.b64encode(zlib.compress(content)).decode("ascii")
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "zlib": text}


def _decoded(name: str, value: Mapping[str, Any]) -> Tensor:
    try:
        dtype = getattr(torch, value["dtype"])
        content = bytearray(zlib.decompress(base64.b64decode(value["zlib"])))
        shape = tuple(value["shape"])
        return torch.frombuffer(content, dtype=dtype).reshape(shape).clone() if content else torch.empty(shape, dtype=dtype)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, zlib.error) as error:
        raise UserError(f"{name} is a mapping, but none that holds a tensor ({error}): give a tensor or a list") from error
