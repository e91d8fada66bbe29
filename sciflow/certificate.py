"""Certificates: a record of named tests, their thresholds and a verdict, stored with what they speak about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from html import escape
from pathlib import Path
from typing import Any

from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.strict_json import dumps, loads, plain

__all__ = ["SCOPE", "Certificate", "Figure", "Test"]

SCOPE = "relative to the stated model and prior; not for diagnosis"
_FORMAT, _VERSION = "sciflow.certificate", 1
_SIGNS = {"<=": "≤", ">=": "≥"}


@dataclass(frozen=True)
class Test:
    """One named figure and what was demanded of it.

    Arguments:
        name: unique within a certificate.
        value: the figure; None if it was not evaluated.
        threshold: the limit, or (low, high) for "inside" (ends included); None for a figure that is only reported.
        comparison: "<=", ">=" or "inside"; None for a figure that is only reported.
        error: its standard error. It is shown, it does not enter the verdict: put it into the threshold if it should.
        unit, description, reference: unit, one sentence on what is measured, source of the method.

    >>> Test("KS of pT", 0.012, 0.02, "<=").outcome
    'passed'
    """

    __test__ = False  # not a test case for pytest

    name: str
    value: float | None
    threshold: float | tuple[float, float] | None = None
    comparison: str | None = None
    error: float | None = None
    unit: str = ""
    description: str = ""
    reference: str = ""

    def __post_init__(self) -> None:
        threshold = self.threshold
        if self.comparison == "inside":
            if not isinstance(threshold, Sequence) or len(threshold) != 2:
                raise UserError(f"test {self.name!r}: the threshold is {threshold!r}, 'inside' needs (low, high)")
            threshold = (float(threshold[0]), float(threshold[1]))
        elif self.comparison in _SIGNS and threshold is not None:
            threshold = float(threshold)  # type: ignore[arg-type]
        elif self.comparison is not None or threshold is not None:
            raise UserError(
                f"test {self.name!r}: comparison {self.comparison!r} with threshold {threshold!r}; give '<=', '>=' or "
                "'inside' with a threshold, or neither for a figure that is only reported"
            )
        for name, number in (("threshold", threshold), ("value", self.value), ("error", self.error)):
            plain = number if number is None or isinstance(number, tuple) else float(number)  # type: ignore[arg-type]
            object.__setattr__(self, name, plain)

    @property
    def outcome(self) -> str:
        """passed | failed | not evaluated | reported. A value or limit that is not finite never passes."""
        if self.value is None:
            return "not evaluated"
        if self.threshold is None:
            return "reported"
        low, high = self.threshold if isinstance(self.threshold, tuple) else (self.threshold, self.threshold)
        good = (self.comparison == "<=" or self.value >= low) and (self.comparison == ">=" or self.value <= high)
        return "passed" if good and all(map(math.isfinite, (self.value, low, high))) else "failed"

    @property
    def passed(self) -> bool:
        """Whether the test was evaluated, is finite and keeps its threshold."""
        return self.outcome == "passed"

    @property
    def demand(self) -> str:
        """The threshold in words, '' if the figure is only reported."""
        if isinstance(self.threshold, tuple):
            return f"in [{self.threshold[0]:.4g}, {self.threshold[1]:.4g}]"
        return "" if self.threshold is None else f"{_SIGNS[self.comparison or '']} {self.threshold:.4g}"

    @property
    def measured(self) -> str:
        """Value, error and unit in words."""
        error = "" if self.error is None else f" ± {self.error:.4g}"
        return "—" if self.value is None else f"{self.value:.4g}{error} {self.unit}".rstrip()


@dataclass(frozen=True)
class Figure:
    """A picture beside the certificate: a path relative to its folder, and a caption."""

    path: str
    caption: str = ""


@dataclass(frozen=True, repr=False)
class Certificate:
    """Named tests with a verdict and a scope.

    `verdict` is "failed" if any test failed, else "incomplete" if any was not evaluated or none has a threshold (an
    empty certificate too), else "passed".

    Arguments:
        tests: the tests, with unique names.
        scope: what the verdict is relative to.
        subject: what was tested.
        context: whatever JSON can hold: versions, seeds, hashes, sample sizes. Tuples become lists.
        figures: name -> `Figure`, or (relative path, caption), or a path.

    >>> certificate = Certificate([Test("AUC after", 0.51, 0.53, "<=", error=0.004)], subject="electrons")
    >>> certificate.verdict
    'passed'
    >>> Certificate.from_json(certificate.to_json()) == certificate
    True
    """

    tests: Sequence[Test] = ()
    scope: str = SCOPE
    subject: str = ""
    context: Mapping[str, Any] = field(default_factory=dict)
    figures: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "tests", tuple(self.tests))
        names = [test.name for test in self.tests]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"the certificate has two tests named {twice[0]!r}: give every test its own name")
        if not isinstance(self.context, Mapping):
            raise TypeError(f"context is a {type(self.context).__name__}, expected a mapping")
        object.__setattr__(self, "context", plain(self.context, "context"))
        object.__setattr__(self, "figures", {str(name): _figure(entry) for name, entry in self.figures.items()})

    @property
    def verdict(self) -> str:
        outcomes = [test.outcome for test in self.tests]
        if "failed" in outcomes:
            return "failed"
        return "incomplete" if "not evaluated" in outcomes or "passed" not in outcomes else "passed"

    def __getitem__(self, name: str) -> Test:
        for test in self.tests:
            if test.name == name:
                return test
        raise KeyError(name)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for `sciflow.strict_json`."""
        content = {
            "subject": self.subject,
            "scope": self.scope,
            "verdict": self.verdict,
            "tests": [{**asdict(test), "outcome": test.outcome} for test in self.tests],
            "figures": {name: asdict(entry) for name, entry in self.figures.items()},
            "context": self.context,
        }
        return {"format": _FORMAT, "version": _VERSION, **content}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Certificate:
        """The inverse of `to_dict`. Raises `UserError` if it is something else, newer, or its verdict does not follow."""
        if not isinstance(content, Mapping) or content.get("format") != _FORMAT:
            raise UserError(f"not a certificate: it has no entry 'format': '{_FORMAT}'")
        version = content.get("version")
        if type(version) is not int or version > _VERSION:
            raise UserError(f"the certificate has format version {version}, this sciflow reads up to {_VERSION}: update it")
        known = {entry.name for entry in fields(Test)}
        try:
            tests = [Test(**{key: entry for key, entry in test.items() if key in known}) for test in content["tests"]]
            found = cls(tests, content["scope"], content["subject"], content["context"], content["figures"])
            stated = content["verdict"]
        except (KeyError, TypeError, AttributeError) as error:
            raise UserError(f"the certificate is damaged: {type(error).__name__} {error}") from error
        if stated != found.verdict:
            raise UserError(f"the certificate says {stated!r} but its tests say {found.verdict!r}: it was altered")
        return found

    def to_json(self) -> str:
        return dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> Certificate:
        try:
            content = loads(text)
        except ValueError as error:
            raise UserError(f"the certificate is not JSON, or cut short: {error}") from error
        return cls.from_dict(content)

    def write(self, path: str | Path) -> Path:
        """Write JSON to `path`, whole or not at all."""
        path = Path(path)
        try:
            with replacing(path) as beside:
                beside.write_text(self.to_json() + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"{path}: the certificate cannot be written: {reason(error)}") from error
        return path

    @classmethod
    def read(cls, path: str | Path) -> Certificate:
        """Raises `UserError`, naming the file, if it is missing, damaged or newer than this version."""
        try:
            return cls.from_json(Path(path).read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: no readable certificate: {getattr(error, 'strerror', None) or error}") from error
        except UserError as error:
            raise UserError(f"{path}: {error}") from error

    def __repr__(self) -> str:
        head = f"Certificate{f' of {self.subject}' if self.subject else ''}: {self.verdict} ({self.scope})"
        rows = [(test.name, test.measured, test.demand, test.outcome) for test in self.tests]
        widths = [max((len(row[column]) for row in rows), default=0) for column in range(4)]
        lines = ["  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        return "\n".join([head, *(lines or ["  no tests"])])

    def to_html(self) -> str:
        """An escaped HTML fragment for reports; classes `certificate` and the outcome are there for style sheets."""

        def row(tag: str, cells: Sequence[str]) -> str:
            return "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells)

        head = row("th", ("test", "value", "demanded", "outcome", "what it measures"))
        body = "\n".join(
            f'<tr class="{escape(test.outcome.replace(" ", "-"))}">'
            + row("td", (test.name, test.measured, test.demand, test.outcome, f"{test.description} {test.reference}".strip()))
            + "</tr>"
            for test in self.tests
        )
        title = f"<caption>{escape(self.subject)}: <strong>{self.verdict}</strong> ({escape(self.scope)})</caption>"
        return f'<table class="certificate {self.verdict}">{title}\n<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def _figure(entry: Any) -> Figure:
    if isinstance(entry, Figure):
        return entry
    if isinstance(entry, Mapping):
        return Figure(**entry)
    return Figure(str(entry)) if isinstance(entry, (str, Path)) else Figure(str(entry[0]), str(entry[1]))
