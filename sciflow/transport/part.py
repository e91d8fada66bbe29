"""What the parts of a transport have in common: they record their arguments and print them."""

from __future__ import annotations

from typing import Any

from sciflow.recorded import Recorded

__all__ = ["Part"]


class Part(Recorded):
    """A coupling, path, head, space, stepper, ...: an immutable choice that is saved as its arguments."""

    def __repr__(self) -> str:
        inner = ", ".join(f"{name}={value!r}" for name, value in getattr(self, "recorded_arguments", {}).items())
        return f"{type(self).__name__}({inner})"

    def same(self, other: object) -> bool:
        """Whether the other is the same choice: lists and tuples, 1 and 1.0 do not differ."""
        return _plain(self) == _plain(other)


def _plain(value: Any) -> Any:
    if isinstance(value, Part):
        return type(value), {name: _plain(entry) for name, entry in getattr(value, "recorded_arguments", {}).items()}
    return tuple(map(_plain, value)) if isinstance(value, (list, tuple)) else value
