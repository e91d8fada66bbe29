"""Which bytes a scan came from."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

__all__ = ["sha256_of", "sha256_of_many"]


def sha256_of(path: str | Path) -> str:
    """The sha256 of a file, as `sha256sum` prints it."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_of_many(paths: Iterable[Path]) -> str:
    """One sha256 for the files of a folder: that of the sorted lines `<sha256>  <name>`."""
    lines = sorted(f"{sha256_of(path)}  {path.name}\n" for path in paths)
    return hashlib.sha256("".join(lines).encode()).hexdigest()
