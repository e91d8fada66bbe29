"""Integers and names as they come from outside."""

from __future__ import annotations

import math
import subprocess
import sys

import numpy as np
import pytest

from sciflow.arguments import integer, resolve, split_path
from sciflow.errors import UserError


def test_integers() -> None:
    assert [integer("n", value, 0, 4) for value in (0, 3, np.int8(2))] == [0, 3, 2]
    for value, reason in (
        (4, "n is 4, expected an integer from 0 to 3"),
        (-1, "n is -1"),
        (True, "n is True"),
        (1.0, "n is 1.0"),
    ):
        with pytest.raises(UserError, match=reason):
            integer("n", value, 0, 4)


def test_names() -> None:
    assert resolve("math:tau") == math.tau and resolve("collections:OrderedDict.fromkeys") is not None
    assert split_path("a.b:c.d") == ("a.b", "c.d")
    for path in ("math", "math:", ":tau", ""):
        with pytest.raises(UserError, match="expected 'module:attribute'"):
            resolve(path)
    with pytest.raises(UserError, match="math has no 'nothing'"):
        resolve("math:nothing")
    with pytest.raises(ModuleNotFoundError):
        resolve("no_such_package_xyz:name")


def test_nothing_heavy_is_imported() -> None:
    code = "import sys, sciflow.arguments, sciflow.domain; assert not {'torch', 'numpy'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
