"""One certificate for many: the worst verdict, how many have which, and the worst figure of each test."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from sciflow.certificate import Certificate, Test

__all__ = ["summary"]

_VERDICTS = ("passed", "warned", "incomplete", "failed")


def summary(
    certificates: Mapping[int, Certificate], failures: Mapping[int, str], not_finite: Sequence[int] = (), **context: Any
) -> Certificate:
    """The verdict is the worst of all observations that have draws, and "warned" if some have none, "failed" if many have none.

    `context["tests"]` has for each test how often it had which outcome, and its worst figure with the observation's number.

    Arguments:
        certificates: by number of the observation.
        failures: number -> reason, of observations without draws.
        not_finite: numbers of observations with draws that are not finite.

    >>> good, bad = Certificate([Test("k-hat", 0.2, 0.7, "<=")]), Certificate([Test("k-hat", 0.9, 0.7, "<=")])
    >>> found = summary({0: good, 1: bad, 2: good}, {})
    >>> found.verdict, found["certificates that failed"].value, found.context["tests"]["k-hat"]["worst"]
    ('failed', 1.0, 0.9)
    """
    count = len(certificates) + len(failures)
    verdicts = Counter(certificate.verdict for certificate in certificates.values())
    first = min(failures, default=None)
    said = "" if first is None else f"; the first is observation {first}: {failures[first]}"
    share = len(failures) / count if count else math.nan
    incomplete = verdicts["incomplete"]
    tests = [
        Test("observations without draws", len(failures), 0, "<=", severity="warn", description=f"of {count}{said}"),
        Test("share of observations without draws", share, 0.1, "<="),
        Test("certificates that failed", verdicts["failed"], 0, "<=", description=_of("failed", certificates)),
        Test("certificates that warned", verdicts["warned"], 0, "<=", severity="warn", description=_of("warned", certificates)),
        Test("certificates that are incomplete", None if incomplete else 0, 0, "<=",
             description=_of("incomplete", certificates)),
        Test("observations with draws that are not finite", len(not_finite), 0, "<="),
    ]  # fmt: skip
    counts = {verdict: verdicts[verdict] for verdict in _VERDICTS}
    return Certificate(
        tests, subject=f"{count} observations",
        context={"observations": count, "verdicts": counts, "tests": _worst(certificates), **context},
    )  # fmt: skip


def _of(verdict: str, certificates: Mapping[int, Certificate]) -> str:
    numbers = [number for number, certificate in certificates.items() if certificate.verdict == verdict]
    if not numbers:
        return f"of {len(certificates)}"
    reason = certificates[numbers[0]].reasons[0]
    return f"{len(numbers)} of {len(certificates)}; the first is observation {numbers[0]}: {reason}"


def _worst(certificates: Mapping[int, Certificate]) -> dict[str, Any]:
    """Test -> counts of its outcomes and its worst figure."""
    found: dict[str, Any] = {}
    excess: dict[str, float] = {}
    for number, certificate in certificates.items():
        for test in certificate.tests:
            entry = found.setdefault(test.name, {"outcomes": {}, "worst": None, "observation": None})
            entry["outcomes"][test.outcome] = entry["outcomes"].get(test.outcome, 0) + 1
            if test.value is None or test.threshold is None:
                continue
            above = _excess(test)
            if test.name not in excess or above > excess[test.name]:
                excess[test.name] = above
                entry.update(worst=test.value, observation=number)
    return found


def _excess(test: Test) -> float:
    """How far the value is on the wrong side, negative on the right one."""
    assert test.value is not None
    if math.isnan(test.value):
        return math.inf
    if isinstance(test.threshold, tuple):
        return max(test.threshold[0] - test.value, test.value - test.threshold[1])
    limit = float(test.threshold or 0.0)
    return test.value - limit if test.comparison == "<=" else limit - test.value
