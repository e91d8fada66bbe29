"""Constructors of other packages, recorded as "module:name" and imported with care."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from torch import nn

from sciflow import arguments
from sciflow.errors import UserError
from sciflow.recorded import Recorded

__all__ = ["Reference", "check_root", "decoded", "encoded", "path_of", "resolve"]

# where constructors of flows live: modules found there are called, functions are not
TRUSTED = ("zuko.flows", "nflows.flows")


class Reference(Recorded):
    """A class of `torch.nn` as an argument, such as the activation of a network; recorded by its name."""

    def __init__(self, path: str) -> None:
        # looked at before it is resolved: to import a module is to run its code
        found = resolve(path) if _inside(path, ("torch.nn",)) else None
        if not (_is_module_class(found) and found.__module__.startswith("torch.nn.")):
            raise UserError(f"only classes of torch.nn can be recorded as arguments, not {path}")
        self.path, self.target = path, found


def path_of(target: Callable[..., Any]) -> str:
    """ "module:name" of an importable function or class.

    Raises `UserError` for lambdas, local functions and whatever else cannot be imported again.
    """
    module, name = getattr(target, "__module__", None), getattr(target, "__qualname__", "")
    if not module or not name or "<" in name or module == "__main__":
        raise UserError(f"{target!r} cannot be imported again: move it to the top level of a module")
    return f"{module}:{name}"


def resolve(path: str) -> Any:
    """The object behind "module:name". Raises `UserError` if there is none, or if it belongs to another package."""
    try:
        found = arguments.resolve(path)
    except (ImportError, AttributeError, UserError) as error:
        raise UserError(f"cannot import {path}: {error}") from error
    # a module's namespace also holds what it has imported: that must not be a way round `check_root`
    if not callable(found) or inspect.ismodule(found) or _root(getattr(found, "__module__", None) or "") != _root(path):
        raise UserError(f"{path} is not a function or class of the package {_root(path)!r}")
    return found


def check_root(path: Any, trust: Iterable[str]) -> None:
    """Refuse a recorded path that is neither a class of zuko's or nflows' flows nor in a package named in `trust`."""
    root = _root(path) if isinstance(path, str) else ""
    if root and root in set(trust):
        return
    if not (_inside(path, TRUSTED) and _is_module_class(resolve(path))):
        raise UserError(f"the model is built by {path!r}; load it with trust=({root!r},) if you trust that package")


def encoded(value: Any) -> Any:
    """An argument with classes of torch.nn replaced by `Reference`."""
    if isinstance(value, type) and issubclass(value, nn.Module) and value.__module__.startswith("torch.nn."):
        return Reference(path_of(value))
    if isinstance(value, Mapping):
        return {key: encoded(entry) for key, entry in value.items()}
    return [encoded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def decoded(value: Any) -> Any:
    """The inverse of `encoded`."""
    if isinstance(value, Reference):
        return value.target
    if isinstance(value, Mapping):
        return {key: decoded(entry) for key, entry in value.items()}
    return [decoded(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _inside(path: Any, rooms: Iterable[str]) -> bool:
    module = path.partition(":")[0] if isinstance(path, str) else ""
    return any(f"{module}.".startswith(f"{room}.") for room in rooms)


def _is_module_class(found: Any) -> bool:
    return isinstance(found, type) and issubclass(found, nn.Module)


def _root(path: str) -> str:
    return path.partition(":")[0].partition(".")[0]
