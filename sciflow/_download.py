"""Downloads through pooch: complete and checked, or not there at all."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sciflow.errors import UserError

__all__ = ["download"]

_TIMEOUT = 30.0  # seconds without a byte


def download(urls: Sequence[str], target: Path, sha256: str = "", *, progress: bool = True) -> None:
    """Write the first source that works to `target`; `sha256` "" accepts whatever it serves.

    Raises `UserError` with one reason per source if none works. Sources are tried in order, without retries: a wrong
    checksum does not mend itself, and a broken connection is the caller's to judge.
    """
    import pooch
    import requests

    target.parent.mkdir(parents=True, exist_ok=True)
    logger = pooch.get_logger()
    level, reasons = logger.level, []
    for url in urls:
        bar = _Bar(target.name) if progress else None
        try:
            logger.setLevel(logging.WARNING)  # pooch announces each download on stderr; the caller says what is needed
            pooch.retrieve(
                url,
                known_hash=sha256 or None,
                fname=target.name,
                path=target.parent,
                downloader=pooch.HTTPDownloader(progressbar=bar if bar is not None else False, timeout=_TIMEOUT),
            )
            return
        except requests.exceptions.RequestException as error:
            reasons.append(f"{url}: {_reason(error)}")
        except ValueError as error:
            if "hash" not in str(error):
                raise
            reasons.append(f"{url}: the file it serves has another checksum than {sha256} (truncated or changed)")
        finally:
            logger.setLevel(level)
            if bar is not None:
                bar.close()
    raise UserError(f"could not fetch {target.name}: {'; '.join(reasons)}")


def _reason(error: Exception) -> str:
    import requests

    if isinstance(error, requests.exceptions.HTTPError) and error.response is not None:
        return f"the server answers {error.response.status_code} {error.response.reason}"
    if isinstance(error, requests.exceptions.Timeout):
        return f"no answer within {_TIMEOUT:.0f} s"
    if isinstance(error, requests.exceptions.ChunkedEncodingError):
        return "the connection broke off in the middle of the file"
    if isinstance(error, requests.exceptions.ConnectionError):
        return "no connection (offline, or a proxy is needed: set HTTPS_PROXY)"
    return f"{type(error).__name__}: {error}"


class _Bar:
    """A rich progress bar with the four methods pooch asks for; silent when stderr is not a terminal."""

    def __init__(self, label: str) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

        console = Console(stderr=True)
        columns: list[Any] = [TextColumn(label), BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
        self._progress = Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
        self._task = self._progress.add_task(label, total=None)
        self._progress.start()

    @property
    def total(self) -> float:
        return self._progress.tasks[0].total or 0.0

    @total.setter
    def total(self, value: float) -> None:
        self._progress.update(self._task, total=value)

    def update(self, amount: int) -> None:
        self._progress.update(self._task, advance=amount)

    def reset(self) -> None:
        self._progress.reset(self._task)

    def close(self) -> None:
        self._progress.stop()
