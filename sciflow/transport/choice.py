"""What a rule looks at, and what a rule is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

__all__ = ["Choice", "Rule"]


class Choice(NamedTuple):
    """The parts of a flow and of its training; what is not chosen (yet) is None."""

    path: Any
    head: Any
    base: Any
    space: Any
    stepper: Any
    network: Any
    conditional: bool
    unconditional: bool = False  # the field without the condition is learned too
    maskable: bool = False
    objective: Any = None
    shift: Any = None  # the learned one of the data

    @property
    def coupling(self) -> Any:
        return getattr(self.objective, "coupling", None)


class Rule(NamedTuple):
    """`breaks(choice)` says that parts of these kinds do not go together; `reason` says why and what to do instead.

    Names of kinds in braces are replaced by the parts; `pairs` and `short` are for the documentation.
    """

    pairs: str
    short: str
    breaks: Callable[[Choice], bool]
    reason: str
