"""One named figure and what was demanded of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sciflow.errors import UserError

__all__ = ["Test"]

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
        severity: "fail" or "warn": what it means to break the threshold.

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
    severity: str = "fail"

    def __post_init__(self) -> None:
        threshold = self.threshold
        if self.severity not in ("fail", "warn"):
            raise UserError(f"test {self.name!r}: severity {self.severity!r}, give 'fail' or 'warn'")
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
        """passed | failed | warned | not evaluated | reported. A value or limit that is not finite never passes."""
        if self.value is None:
            return "not evaluated"
        if self.threshold is None:
            return "reported"
        low, high = self.threshold if isinstance(self.threshold, tuple) else (self.threshold, self.threshold)
        good = (self.comparison == "<=" or self.value >= low) and (self.comparison == ">=" or self.value <= high)
        if good and all(map(math.isfinite, (self.value, low, high))):
            return "passed"
        return "warned" if self.severity == "warn" else "failed"

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
