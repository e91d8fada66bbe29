"""Whether several estimates of one evidence agree, and what two evidences say of two models."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

from sciflow.certificate import Test
from sciflow.errors import UserError
from sciflow.posterior.log_evidence import Evidence

__all__ = ["BayesFactor", "agreement", "bayes_factor"]


def agreement(evidences: Sequence[Evidence], *, limit: float = 3.0) -> list[Test]:
    """One test for each pair: |log Z_a - log Z_b| in units of their combined standard error fails above `limit`.

    With 16 replicates on each side two estimates of the same Z fail in 0.5 % of comparisons, with 4 in 2 %: errors of few
    replicates are themselves uncertain. An evidence without an error leaves the test unevaluated, so it cannot pass.

    Raises `UserError` for fewer than two estimates.

    >>> a, b = Evidence.from_replicates([0.1, -0.1, 0.0], "a"), Evidence.from_replicates([2.1, 1.9, 2.0], "b")
    >>> agreement([a, b])[0].outcome
    'failed'
    """
    if len(evidences) < 2:
        raise UserError(f"{len(evidences)} evidence: agreement needs two or more, by different methods")
    tests: list[Test] = []
    for number, (a, b) in enumerate(combinations(evidences, 2)):
        name = f"evidence: {a.method} against {b.method}"
        if any(test.name == name for test in tests):
            name = f"{name} ({number})"
        difference, error = a.log_value - b.log_value, math.hypot(a.error, b.error)
        if not math.isfinite(error):
            lacking = a.method if not math.isfinite(a.error) else b.method
            tests.append(Test(name, None, limit, "<=", description=f"{lacking} has no error: it needs replicates"))
            continue
        value = abs(difference) / error if error > 0 else (0.0 if difference == 0 else math.inf)
        if math.isnan(value):
            value = math.inf
        tests.append(
            Test(name, value, limit, "<=", unit="standard errors",
                 description=f"log Z {a.log_value:.5g} ± {a.error:.2g} and {b.log_value:.5g} ± {b.error:.2g}")
        )  # fmt: skip
    return tests


class BayesFactor(NamedTuple):
    """log of Z_1 / Z_2 with its standard error, and the test that it is known well enough to be quoted."""

    log_value: float
    error: float
    test: Test

    def probability(self, prior_odds: float = 1.0) -> float:
        """The posterior probability of the first model. Raises `UserError` for prior odds that are not positive."""
        if not 0 < prior_odds < math.inf:
            raise UserError(f"prior_odds={prior_odds}: give a positive number, the odds of the first model before the data")
        value = self.log_value + math.log(prior_odds)
        return 1 / (1 + math.exp(-value)) if value > -700 else 0.0


def bayes_factor(first: Evidence, second: Evidence, *, largest_error: float = 0.5) -> BayesFactor:
    """log Z_1 - log Z_2 of two models for the same data; the test fails where the error exceeds `largest_error`.

    Half a unit of log Z is a factor of 1.6: less than a step on any scale of evidence.

    >>> found = bayes_factor(Evidence.from_replicates([0.1, -0.1], "a"), Evidence.from_replicates([-2.1, -1.9], "b"))
    >>> round(found.log_value, 1), found.test.outcome
    (2.0, 'passed')
    """
    value, error = first.log_value - second.log_value, math.hypot(first.error, second.error)
    known = math.isfinite(error)
    test = Test("error of the log Bayes factor", error if known else None, largest_error, "<=",
                description=f"log Bayes factor {value:.4g} by {first.method} and {second.method}")  # fmt: skip
    return BayesFactor(value, error, test)
