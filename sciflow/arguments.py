"""Arguments as they come from outside: integers within a range, and things by their name "module:attribute"."""

from __future__ import annotations

import importlib
import math
import numbers
import operator
from typing import Any

from sciflow.errors import UserError

__all__ = ["integer", "real", "resolve", "split_path"]


def integer(name: str, value: Any, low: int, high: int) -> int:
    """`value` as an integer of Python, low <= value < high. Raises `UserError`, naming the argument, if it is none.

    >>> integer("count", 3, 0, 10)
    3
    """
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)
    except TypeError:
        raise UserError(f"{name} is {value!r}, expected an integer") from None
    if not low <= number < high:
        raise UserError(f"{name} is {number}, expected an integer from {low} to {high - 1}")
    return number


def real(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """`value` as a finite number, low <= value <= high. Raises `UserError`, naming the argument, if it is none.

    >>> real("share", 0.5, 0, 1)
    0.5
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, numbers.Real)
        or not math.isfinite(value)
        or not low <= float(value) <= high
    ):
        bounds = [f"at least {low:g}"] * (low > -math.inf) + [f"at most {high:g}"] * (high < math.inf)
        raise UserError(f"{name} is {value!r}, expected a finite number" + (f", {' and '.join(bounds)}" if bounds else ""))
    return float(value)


def split_path(path: str) -> tuple[str, str]:
    """Module and attribute of "module:attribute". Raises `UserError` for anything else."""
    module_name, separator, attribute = path.partition(":")
    if not (separator and module_name and attribute):
        raise UserError(f"expected 'module:attribute', got {path!r}")
    return module_name, attribute


def resolve(path: str) -> Any:
    """The object named by "module:attribute". To import a module is to run its code: whom to trust is the caller's affair.

    Raises `UserError` if the module has no such attribute, and lets the `ImportError` of the module through.

    >>> resolve("math:tau")
    6.283185307179586
    """
    module_name, attribute = split_path(path)
    found: Any = importlib.import_module(module_name)
    for part in attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as error:
            raise UserError(f"{module_name} has no {attribute!r}") from error
    return found
