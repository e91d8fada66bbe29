"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("MPLBACKEND", "Agg")


@pytest.fixture(scope="session")
def science_data() -> Path:
    """The folder named by SCIFLOW_DATA: absent it skips, in CI its absence is a failure."""
    folder = os.environ.get("SCIFLOW_DATA")
    if folder and Path(folder).is_dir():
        return Path(folder).resolve()
    message = f"SCIFLOW_DATA is {folder!r}: set it to the folder with the public data sets (see `sciflow data list`)"
    if os.environ.get("CI", "").lower() in {"1", "true"}:
        pytest.fail(message)
    pytest.skip(message)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The count of skips is printed even where it is zero."""
    skipped = terminalreporter.stats.get("skipped", [])
    terminalreporter.write_line(f"skipped: {len(skipped)}")
