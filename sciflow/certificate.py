"""Certificates: a record of named tests, their thresholds and a verdict, stored with what they speak about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from html import escape
from pathlib import Path
from typing import Any

from sciflow.errors import UserError
from sciflow.files import reason, replacing
from sciflow.named_test import Test
from sciflow.strict_json import dumps, loads, plain

__all__ = ["SCOPE", "Certificate", "Figure", "Test"]

SCOPE = "relative to the stated model and prior; not for diagnosis"
_FORMAT, _VERSION = "sciflow.certificate", 1


@dataclass(frozen=True)
class Figure:
    """A picture beside the certificate: a path relative to its folder, and a caption."""

    path: str
    caption: str = ""


@dataclass(frozen=True, repr=False)
class Certificate:
    """Named tests with a verdict and a scope.

    `verdict` is "failed" if any test failed, else "incomplete" if any was not evaluated or none has a threshold (an
    empty certificate too), else "warned" if a test of severity "warn" broke its threshold, else "passed".

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
        if "not evaluated" in outcomes or not {"passed", "warned"} & set(outcomes):
            return "incomplete"
        return "warned" if "warned" in outcomes else "passed"

    @property
    def reasons(self) -> list[str]:
        """Why the verdict is not "passed": one sentence for each test that failed, warned or was not evaluated.

        >>> Certificate([Test("k-hat", 1.2, 1.0, "<=", description="tail of the weights")]).reasons
        ['k-hat failed: it is 1.2, demanded is ≤ 1 (tail of the weights).']
        """
        found = []
        for test in self.tests:
            what = f" ({test.description})" if test.description else ""
            if test.outcome == "not evaluated":
                found.append(f"{test.name} was not evaluated{what}.")
            elif test.outcome in ("failed", "warned"):
                found.append(f"{test.name} {test.outcome}: it is {test.measured}, demanded is {test.demand}{what}.")
        if not found and self.verdict != "passed":
            found.append("No test with a threshold was made.")
        return found

    def extended(self, tests: Sequence[Test], **context: Any) -> Certificate:
        """The same certificate with further tests and entries of its context."""
        return replace(self, tests=[*self.tests, *tests], context={**self.context, **context})

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
        except UserError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError) as error:
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
