"""sciflow: conditional flows whose draws come with a certificate."""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

# name -> module; resolved on first use, so that `import sciflow` and the command line stay free of torch
_PUBLIC = {
    "Certificate": "sciflow.certificate",
    "UserError": "sciflow.errors",
    "draw": "sciflow.store",
    "fit": "sciflow.training",
    "load": "sciflow.persistence",
    "read_draws": "sciflow.store",
    "save": "sciflow.persistence",
    "to_netcdf": "sciflow.store",
}
_ROOMS = ("certificate", "distributions", "flows", "networks", "noise", "preprocessing", "store", "training", "transforms")

__all__ = ["Certificate", "UserError", "__version__", "draw", "fit", "load", "read_draws", "save", "to_netcdf"]


def __getattr__(name: str) -> Any:
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    if name in _ROOMS:
        return importlib.import_module(f"sciflow.{name}")
    raise AttributeError(f"module 'sciflow' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_ROOMS])
