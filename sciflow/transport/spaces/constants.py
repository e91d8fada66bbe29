"""Numbers of a space, per feature or for all, beside a tensor."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["per_feature"]


def per_feature(values: float | Sequence[float], like: Tensor) -> Tensor:
    """() or (size,) with dtype and device of a tensor; made once, so that no copy to the device recurs."""
    key = (float(values),) if isinstance(values, (int, float)) else tuple(float(value) for value in values)
    # a compiler folds constants itself
    compiling = torch.compiler.is_compiling()
    found = like.new_tensor(key) if compiling else _constant(key, like.dtype, like.device)
    return found[0] if isinstance(values, (int, float)) else found


@functools.lru_cache(maxsize=256)
def _constant(values: tuple[float, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    with torch.inference_mode(False):
        return torch.tensor(values, dtype=dtype, device=device)
