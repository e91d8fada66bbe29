"""Certificates: the verdict rule case by case, exact round trips, damaged and newer files, escaping."""

from __future__ import annotations

import json
import math
import subprocess
import sys

import numpy as np
import pytest

from sciflow.certificate import SCOPE, Certificate, Figure, Test
from sciflow.errors import UserError

PASSED = Test("good", 1.0, 2.0, "<=")
FAILED = Test("bad", 3.0, 2.0, "<=")
PENDING = Test("pending", None, 2.0, "<=")
REPORTED = Test("only a figure", 0.25)


@pytest.mark.parametrize(
    ("value", "threshold", "comparison", "outcome"),
    [
        (1, 2, "<=", "passed"),
        (2, 2, "<=", "passed"),
        (2.0000001, 2, "<=", "failed"),
        (2, 2, ">=", "passed"),
        (1.9, 2, ">=", "failed"),
        (0.0, (-1, 1), "inside", "passed"),
        (1.0, (-1, 1), "inside", "passed"),
        (1.1, (-1, 1), "inside", "failed"),
        (-1.1, (-1, 1), "inside", "failed"),
        (None, 2, "<=", "not evaluated"),
        (math.nan, 2, "<=", "failed"),
        (math.nan, (-1, 1), "inside", "failed"),
        (-math.inf, 2, "<=", "failed"),
        (math.inf, 2, ">=", "failed"),
        (1.0, math.inf, "<=", "failed"),
        (1.0, math.nan, "<=", "failed"),
        (1.0, None, None, "reported"),
        (math.nan, None, None, "reported"),
        (None, None, None, "not evaluated"),
    ],
)
def test_outcome_of_one_test(value, threshold, comparison, outcome: str) -> None:
    test = Test("t", value, threshold, comparison)
    assert test.outcome == outcome
    assert test.passed is (outcome == "passed")


@pytest.mark.parametrize(
    ("tests", "verdict"),
    [
        ([], "incomplete"),
        ([REPORTED], "incomplete"),
        ([PASSED], "passed"),
        ([PASSED, REPORTED], "passed"),
        ([PASSED, PENDING], "incomplete"),
        ([PASSED, FAILED], "failed"),
        ([PENDING, FAILED], "failed"),
        ([PASSED, Test("lost", math.nan, 1, "<=")], "failed"),
    ],
)
def test_verdict(tests, verdict: str) -> None:
    assert Certificate(tests).verdict == verdict
    assert Certificate.from_json(Certificate(tests).to_json()).verdict == verdict


@pytest.mark.parametrize(
    ("threshold", "comparison"), [(1, "<"), (None, "<="), (1, None), (1, "inside"), ((1, 2, 3), "inside"), (None, "inside")]
)
def test_comparisons_that_make_no_sense(threshold, comparison) -> None:
    with pytest.raises(UserError, match="test 't'"):
        Test("t", 1.0, threshold, comparison)


def full() -> Certificate:
    tests = [
        Test("a", 0.1 + 0.2, 1 / 3, "<=", error=math.nan, unit="GeV", description="x < y & z", reference="arXiv"),
        Test("b", math.inf, (-math.inf, 5e-324), "inside"),
        PENDING,
        Test("numpy", np.float32(0.1), np.int64(3), "<=", error=np.float64(0.1)),
    ]
    numbers = {"N": np.int64(2**62 + 1), "nan": np.float64("nan"), "ends": [-math.inf]}
    context = {"versions": {"sciflow": "0.1.0"}, "seeds": (0, 1), **numbers}
    figures = {"pt": ("figures/pt.png", "pT spectrum"), "eta": "figures/eta.png", "phi": Figure("phi.png", "ü")}
    return Certificate(tests, subject="<electrons>", context=context, figures=figures)


def test_round_trip_is_exact(tmp_path) -> None:
    certificate = full()
    back = Certificate.read(certificate.write(tmp_path / "certificate.json"))
    assert back.to_json() == certificate.to_json()
    assert repr(back) == repr(certificate)
    assert back.tests[1:3] == certificate.tests[1:3] and math.isnan(back["a"].error)
    assert back["a"].value == 0.1 + 0.2 and back["a"].threshold == 1 / 3
    assert back.context["N"] == 2**62 + 1 and back.context["seeds"] == [0, 1] and math.isnan(back.context["nan"])
    assert back.figures == certificate.figures and back.figures["pt"] == Figure("figures/pt.png", "pT spectrum")
    assert back.scope == SCOPE and "not for diagnosis" in back.scope
    assert [entry.name for entry in tmp_path.iterdir()] == ["certificate.json"]


def test_json_is_strict() -> None:
    def refuse(literal: str) -> None:
        raise AssertionError(literal)

    json.loads(full().to_json(), parse_constant=refuse)


def altered(**changes) -> str:
    content = json.loads(Certificate([PASSED]).to_json())
    content.update(changes)
    return json.dumps(content)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not JSON"),
        (full().to_json()[:-40], "cut short"),
        ("[1, 2]", "not a certificate"),
        ('{"format": "other"}', "not a certificate"),
        (altered(version=2), "version 2, this sciflow reads up to 1"),
        (altered(version=None), "version None"),
        (altered(tests=[{}]), "damaged"),
        (altered(tests=None), "damaged"),
        (altered(tests=[{"name": "a", "value": "high"}]), "damaged: ValueError could not convert"),
        (altered(context=3), "damaged|context"),
        (altered(verdict="failed"), "altered"),
    ],
)
def test_damaged_files_say_why_in_one_line(tmp_path, text: str, reason: str) -> None:
    path = tmp_path / "certificate.json"
    path.write_text(text)
    with pytest.raises(UserError, match=reason) as caught:
        Certificate.read(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_missing_unreadable_and_unwritable_files(tmp_path) -> None:
    with pytest.raises(UserError, match="no readable certificate: No such file"):
        Certificate.read(tmp_path / "none.json")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="no readable certificate"):
        Certificate.read(tmp_path / "binary")
    with pytest.raises(UserError, match="cannot be written"):
        full().write(tmp_path / "absent" / "certificate.json")


def test_an_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch) -> None:
    path = Certificate([PASSED]).write(tmp_path / "certificate.json")
    before = path.read_text()

    def interrupted(*arguments) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("os.replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        full().write(path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["certificate.json"]


def test_readable_table() -> None:
    text = repr(full())
    assert text == str(full())
    lines = text.splitlines()
    assert lines[0] == f"Certificate of <electrons>: failed ({SCOPE})"
    assert lines[1].split() == ["a", "0.3", "±", "nan", "GeV", "≤", "0.3333", "passed"]
    assert "not evaluated" in lines[3]
    assert "no tests" in repr(Certificate())


def test_html_is_escaped() -> None:
    html = Certificate([Test("<script>", 1, 2, "<=", description="a & b", unit='"')], subject="<b>", scope="<i>").to_html()
    assert "<script>" not in html and "&lt;script&gt;" in html and "a &amp; b" in html
    assert "<b>" not in html and "<i>" not in html
    import xml.etree.ElementTree as tree

    assert tree.fromstring(html).tag == "table"


def test_names_are_unique_and_found() -> None:
    with pytest.raises(UserError, match="two tests named 'good'"):
        Certificate([PASSED, PASSED])
    with pytest.raises(KeyError):
        Certificate([PASSED])["bad"]


def test_context_that_json_cannot_hold() -> None:
    with pytest.raises(UserError, match=r"context\.model is a object"):
        Certificate(context={"model": object()})
    with pytest.raises(UserError, match="reserved"):
        Certificate(context={"$float": "1"})


def test_importing_takes_no_heavy_library() -> None:
    code = "import sys, sciflow.certificate; print({'torch', 'numpy', 'xarray'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"
