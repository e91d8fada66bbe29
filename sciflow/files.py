"""Files and folders that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["alive", "flush", "reason", "remove", "replace_folder", "replacing", "temporary"]


def temporary(path: str | Path) -> Path:
    """The name beside `path` that this process writes to before it renames: `<name>.tmp-<pid>`."""
    path = Path(path)
    return path.with_name(f"{path.name}.tmp-{os.getpid()}")


@contextlib.contextmanager
def replacing(path: str | Path) -> Iterator[Path]:
    """Write a file beside `path`, then put it in place at once.

    Yields the temporary path. Whatever is raised inside, a KeyboardInterrupt too, leaves the old file and no temporary.

    >>> import tempfile
    >>> target = Path(tempfile.mkdtemp()) / "a.txt"
    >>> with replacing(target) as beside:
    ...     _ = beside.write_text("whole")
    >>> target.read_text(), [entry.name for entry in target.parent.iterdir()]
    ('whole', ['a.txt'])
    """
    path = Path(path)
    beside = temporary(path)
    remove(beside)
    try:
        yield beside
        _flush(beside)
        os.replace(beside, path)
        _flush(path.parent)
    except BaseException:
        remove(beside)
        raise


def replace_folder(beside: Path, folder: Path) -> None:
    """Put the finished folder `beside` in the place of `folder`; what was there is removed.

    Where the system can exchange two names at once (Linux, macOS) there is no moment without a whole `folder`.
    Elsewhere the old one is moved aside first and put back if the second rename fails.
    """
    for entry in sorted(beside.rglob("*")):
        _flush(entry)
    _flush(beside)
    if not folder.exists():
        os.replace(beside, folder)
    elif _exchange(beside, folder):
        remove(beside)
    else:
        aside = folder.with_name(f"{folder.name}.old-{os.getpid()}")
        os.replace(folder, aside)
        try:
            os.replace(beside, folder)
        except BaseException:
            os.replace(aside, folder)
            raise
        remove(aside)
    _flush(folder.parent)


def remove(path: Path) -> None:
    """Remove a file or a folder, if there is one."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()


def reason(error: BaseException) -> str:
    """Why a file operation failed, in one line; libraries hide the system's error behind their own.

    >>> reason(OSError(28, "file write failed: time = ..."))
    'No space left on device'
    """
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        cause = cause.__cause__ or cause.__context__
    return " ".join(str(error).split()) or type(error).__name__


def _exchange(a: Path, b: Path) -> bool:
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        if sys.platform.startswith("linux"):
            here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
            return libc.renameat2(here, os.fsencode(a), here, os.fsencode(b), exchange) == 0
        if sys.platform == "darwin":
            return libc.renamex_np(os.fsencode(a), os.fsencode(b), 2) == 0  # RENAME_SWAP
    except (AttributeError, OSError, TypeError):  # a C library without the call
        pass
    return False


def _flush(path: Path) -> None:
    if path.is_dir() and sys.platform == "win32":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:  # some network file systems cannot flush a folder
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def alive(pid: int) -> bool:
    """Whether a process of this machine runs; true where one may not ask."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    return True


def flush(path: Path) -> None:
    """Bring a file, or all files below a folder, to the disk."""
    for entry in [path] if path.is_file() else path.rglob("*"):
        if entry.is_file():
            with open(entry, "rb") as file:
                os.fsync(file.fileno())
