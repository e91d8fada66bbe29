"""The priors that come with the package."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

from sciflow.errors import UserError

__all__ = ["model_folder", "shipped_prior", "shipped_sizes"]


def shipped_sizes() -> list[int]:
    """Sizes N for which there is a prior over images of N x N."""
    folder = _weights()
    if not folder.is_dir():
        return []
    found = (re.fullmatch(r"prior(\d+)", entry.name) for entry in folder.iterdir() if (entry / "config.json").is_file())
    return sorted(int(match[1]) for match in found if match)


def model_folder(size: int) -> Path:
    """The folder of the prior for images of size x size. Raises `UserError`, listing the sizes there are."""
    if size in shipped_sizes():
        return _weights() / f"prior{size}"
    there = ", ".join(f"{known} x {known}" for known in shipped_sizes()) or "none"
    raise UserError(
        f"there is no shipped prior for images of {size} x {size}; there are: {there}. Crop the scan (--size), or train one "
        "with `sciflow mri train` and give its folder"
    )


def shipped_prior(size: int, *, device: Any = None) -> Any:
    """The flow over images (2, size, size) that was trained on freely licensed heads; its folder has a README.

    Raises `UserError`, listing the sizes there are.
    """
    import sciflow

    return sciflow.load(model_folder(size), device=device)


def _weights() -> Path:
    return Path(str(resources.files("sciflow_mri") / "weights"))
