"""The commands in a folder, as their tests call them."""

from __future__ import annotations

import os
from pathlib import Path

from click.testing import CliRunner
from sciflow_mri.commands import mri

from sciflow.errors import UserError


def run(folder: Path, *words: object) -> tuple[int, str]:
    """Exit code (2 for a `UserError`) and output, in that folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        result = CliRunner().invoke(mri, [str(word) for word in words])
    finally:
        os.chdir(before)
    if isinstance(result.exception, UserError):
        assert "\n" not in str(result.exception)
        return 2, str(result.exception)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.output
