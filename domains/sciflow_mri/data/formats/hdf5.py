"""HDF5 files opened and read with complaints that a person can use."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

import h5py

from sciflow.errors import UserError

__all__ = ["opened"]


@contextlib.contextmanager
def opened(path: Path) -> Iterator[h5py.File]:
    """The file for reading; whatever HDF5 raises, then and later, becomes a `UserError` with the file's name."""
    try:
        with h5py.File(path, "r") as file:
            yield file
    except UserError:
        raise
    except (OSError, RuntimeError, LookupError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())
        if "truncated" in text:
            text = "the file is truncated: copy it again"
        elif "not registered" in text or "plugin" in text:
            text = f"HDF5 cannot decompress it ({text}): install hdf5plugin"
        elif "signature" in text:
            text = "it is no HDF5 file"
        else:
            text = f"HDF5 cannot read it ({text}): the file is damaged or truncated, copy it again"
        raise UserError(f"{path}: {text}") from None
