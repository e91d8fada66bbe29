"""Objects that remember how they were built, so that they are saved as arguments plus weights, without pickle."""

from __future__ import annotations

import functools
import inspect
import numbers
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch

from sciflow.arguments import resolve
from sciflow.errors import UserError
from sciflow.strict_json import RESERVED

__all__ = ["Recorded", "build", "configuration"]


class Recorded:
    """Mixin: the arguments of the outermost constructor call are kept in `recorded_arguments`.

    Arguments may be numbers, strings, None, booleans, lists, tuples, mappings with string keys, `torch.dtype`
    and other `Recorded` objects. Fitted state belongs into parameters and buffers, never into arguments.

    >>> class Scale(Recorded):
    ...     def __init__(self, factor, *, label="x"):
    ...         self.factor = factor
    >>> Scale(2.0).recorded_arguments
    {'factor': 2.0, 'label': 'x'}
    """

    recorded_arguments: dict[str, Any]
    unrecordable: str | None = None  # why this very object cannot be written down, if it cannot

    @classmethod
    def check_trust(cls, arguments: Mapping[str, Any], trust: Iterable[str]) -> None:
        """Called by `build` before the constructor: refuse arguments that would import untrusted code."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "__init__" not in cls.__dict__:
            return
        original = cls.__init__
        signature = inspect.signature(original)

        @functools.wraps(original)
        def recording(self: Any, *arguments: Any, **keywords: Any) -> None:
            if "recorded_arguments" not in self.__dict__:
                bound = signature.bind(self, *arguments, **keywords)
                bound.apply_defaults()
                # object.__setattr__: torch modules would register module-valued entries as children
                object.__setattr__(self, "recorded_arguments", _named(signature, bound))
            original(self, *arguments, **keywords)

        cls.__init__ = recording  # type: ignore[method-assign]


def _named(signature: inspect.Signature, bound: inspect.BoundArguments) -> dict[str, Any]:
    named: dict[str, Any] = {}
    positional: list[Any] = []
    by_position: set[Any] = {inspect.Parameter.POSITIONAL_ONLY}
    kinds = {signature.parameters[name].kind for name, value in bound.arguments.items() if isinstance(value, tuple) and value}
    if inspect.Parameter.VAR_POSITIONAL in kinds:
        by_position.add(inspect.Parameter.POSITIONAL_OR_KEYWORD)  # what stands before *arguments cannot be named
    for name, value in list(bound.arguments.items())[1:]:
        kind = signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named.update(value)
        elif kind is inspect.Parameter.VAR_POSITIONAL:
            positional.extend(value)
        elif kind in by_position:
            positional.append(value)
        else:
            named[name] = value
    if positional:
        named["*"] = positional
    return {name: _snapshot(value) for name, value in named.items()}


def _snapshot(value: Any) -> Any:
    """Containers are copied: the caller may change them later."""
    if type(value) is list:
        return [_snapshot(entry) for entry in value]
    return {key: _snapshot(entry) for key, entry in value.items()} if type(value) is dict else value


def configuration(value: Any) -> Any:
    """The JSON form of a recorded object or of one of its arguments.

    Raises `UserError` if an argument cannot be written down (a function, a tensor, an unrecorded object, a mapping with the key
    "$float", which stands for numbers that are not finite).
    """
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, np.bool_):
        return bool(value)
    if isinstance(value, (numbers.Integral, numbers.Real)):  # numpy's scalars too
        return int(value) if isinstance(value, numbers.Integral) else float(value)
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, Recorded):
        if value.unrecordable:
            raise UserError(value.unrecordable)
        if "<locals>" in type(value).__qualname__:
            raise UserError(f"cannot record {type(value).__qualname__}: define the class at the top of a module")
        arguments = {name: configuration(entry) for name, entry in getattr(value, "recorded_arguments", {}).items()}
        return {"class": f"{type(value).__module__}:{type(value).__qualname__}", "arguments": arguments}
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        if RESERVED in value:  # as the only key it would be read back as a number
            raise UserError(f"cannot record a mapping with the reserved key {RESERVED!r}: rename it")
        return {"mapping": {key: configuration(entry) for key, entry in value.items()}}
    if isinstance(value, (list, tuple)):
        return [configuration(entry) for entry in value]
    raise UserError(
        f"cannot record an argument of type {type(value).__name__}: give numbers, strings, lists, "
        "mappings or objects of a class derived from sciflow.recorded.Recorded"
    )


def build(value: Any, *, trust: Iterable[str] = ()) -> Any:
    """The inverse of `configuration`. Lists come back as tuples.

    Only classes derived from `Recorded` are built, and only from sciflow itself and the packages named in `trust`:
    importing a module runs code, so a model file cannot choose freely what is imported.
    """
    if isinstance(value, list):
        return tuple(build(entry, trust=trust) for entry in value)
    if not isinstance(value, dict):
        return value
    if "dtype" in value:
        dtype = getattr(torch, str(value["dtype"]), None)
        if not isinstance(dtype, torch.dtype):
            raise UserError(f"this torch has no dtype {value['dtype']!r}")
        return dtype
    if "mapping" in value:
        return {key: build(entry, trust=trust) for key, entry in value["mapping"].items()}
    if "class" not in value or "arguments" not in value:
        raise UserError(f"not a recorded object: it has the keys {sorted(value)} instead of 'class' and 'arguments'")
    cls: Any = _resolve(value["class"], trust)
    arguments = {name: build(entry, trust=trust) for name, entry in value["arguments"].items()}
    cls.check_trust(arguments, trust)
    positional = arguments.pop("*", ())
    try:
        return cls(*positional, **arguments)
    except UserError:
        raise
    except (TypeError, ValueError) as error:
        raise UserError(f"{value['class']} does not take the recorded arguments: {error}") from error


def _resolve(path: str, trust: Iterable[str]) -> type:
    root = str(path).partition(":")[0].partition(".")[0]
    if root != "sciflow" and root not in set(trust):
        raise UserError(f"the model names a class of the package {root!r}; load it with trust=({root!r},) if you trust it")
    try:
        found = resolve(str(path))
    except (ImportError, AttributeError, UserError) as error:
        raise UserError(f"this version of {root} has no class {path}: {error}") from error
    if not (isinstance(found, type) and issubclass(found, Recorded)):
        raise UserError(f"{path} is not a recorded class")
    return found
