"""Finds what would make the host wait for a device, on the CPU too."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["NoSync"]

# values that the host asks for, and results whose shape depends on values
_WAITING = {
    "_local_scalar_dense", "item", "is_nonzero", "equal", "nonzero", "nonzero_numpy", "masked_select", "_unique", "_unique2",
    "unique_dim", "unique_consecutive", "unique_dim_consecutive", "bincount", "_linalg_check_errors",
}  # fmt: skip


class NoSync(TorchDispatchMode):
    """Raises at operations whose result the host has to wait for; an index that is a boolean mask is one of them."""

    def __torch_dispatch__(self, function: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        name = function._schema.name.removeprefix("aten::")
        masks = name in ("index", "index_put", "index_put_") and any(
            entry is not None and entry.dtype == torch.bool for entry in arguments[1]
        )
        if name in _WAITING or masks or (name == "repeat_interleave" and "Tensor" in function._overloadname):
            raise AssertionError(f"the host waits for the device at {function}")
        return function(*arguments, **(keywords or {}))
