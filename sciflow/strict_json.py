"""Plain values and JSON that any reader understands: no NaN literals, no types of other libraries."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sciflow.errors import UserError

__all__ = ["RESERVED", "dumps", "loads", "plain"]

RESERVED = "$float"  # a key with a meaning of its own, see `dumps`


def plain(value: Any, name: str) -> Any:
    """Nested mappings, lists and scalars of Python itself; tuples become lists, arrays and numpy scalars are converted.

    Raises `UserError`, naming the entry, for anything else.

    >>> plain({"N": (1, 2)}, "context")
    {'N': [1, 2]}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, Mapping):
        if RESERVED in value:
            raise UserError(f"{name} has the reserved key {RESERVED!r}: rename it")
        return {str(key): plain(entry, f"{name}.{key}") for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry, name) for entry in value]
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "tolist"):
        return plain(value.tolist(), name)
    raise UserError(f"{name} is a {type(value).__name__}: give numbers, strings, lists or mappings")


def dumps(value: Any, *, indent: int | None = 1) -> str:
    """JSON; numbers that are not finite become {"$float": "nan"}.

    >>> dumps([1.5, float("inf")], indent=None)
    '[1.5, {"$float": "inf"}]'
    """
    return json.dumps(_encode(value), indent=indent, ensure_ascii=False, allow_nan=False)


def loads(text: str | bytes) -> Any:
    """The inverse of `dumps`. Raises `ValueError` for text that is not strict JSON."""
    return json.loads(text, object_hook=_decode, parse_constant=_refuse)


def _encode(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _encode(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_encode(entry) for entry in value]
    return {RESERVED: repr(value)} if isinstance(value, float) and not math.isfinite(value) else value


def _decode(mapping: dict[str, Any]) -> Any:
    return float(mapping[RESERVED]) if set(mapping) == {RESERVED} else mapping


def _refuse(literal: str) -> Any:
    raise ValueError(f"{literal} is not JSON")
