"""What is tested of the particles of a sequential Monte Carlo run."""

from __future__ import annotations

import math

from sciflow.certificate import Test
from sciflow.posterior.result import Result
from sciflow.posterior.weights import PSIS

__all__ = ["FAMILIES", "FEWEST", "population_tests"]

# 20 independent draws know a mean to 0.22 sd, and miss a mode of mass 0.14 in one case of twenty. Scatter of Z over the runs is
# no error of Z where families are few: on mixtures of ten modes in 8 dimensions log Z was 1.3 to 14, up to 60 stated errors,
# off with 1 to 6.5 families of 800 to 8000 particles (15 samplings), and up to 1.0, 1.6 to 5.4 stated errors, with 14 to 36
# families, where the families' k-hat was 0.75 to 0.95; with 150 and more within 3 errors.
FEWEST, FAMILIES = 10.0, 20.0
_TAILED = 50


def population_tests(found: Result, *, least_acceptance: float = 0.3) -> list[Test]:
    """Effective sizes along the way, ancestors, duplicates, acceptance, and the scatter of Z over the runs."""
    runs, particles = found.x.shape[:2]
    figures = found.statistics
    sizes = found.traces["effective_size"]
    tail = figures["k_hat"] if math.isnan(figures["k_hat"]) else max(figures["k_hat"], -1.0)
    enough = figures["ancestors"] * runs >= _TAILED
    tests = [
        Test("least effective share", float(sizes.min()) / particles, 0.05, ">=", severity="warn",
             description="of particles, along the way of the worst run: below it the next ones come from a few"),
        Test("distinct ancestors", figures["ancestors"], 20.0, ">=", severity="warn",
             description="first particles that have descendants, mean over runs: few of them know few modes"),
        Test("independent families", figures["families"], FAMILIES, ">=", severity="warn", description=_FAMILIES),
        Test("independent families, limit", figures["families"], FEWEST, ">=", description=_FAMILIES),
        Test("independent draws", figures["independent"], FAMILIES, ">=",
             description="that the particles are worth, after moves have made families forget where they came from"),
        Test("k-hat of families", tail, 0.7 if enough else None, "<=" if enough else None, severity="warn", reference=PSIS,
             description=_TAIL),
        Test("share of duplicates", 1 - figures["distinct"], 0.05, "<=", severity="warn",
             description="draws that are copies of others after all moves"),
    ]  # fmt: skip
    if "acceptance" in figures:
        tests.append(Test("least acceptance", figures["acceptance"], least_acceptance, ">=", severity="warn",
                          description="of the moves, at the worst temperature"))  # fmt: skip
    evidence = found.evidence
    known = evidence is not None and runs > 1 and math.isfinite(evidence.error)
    tests.append(
        Test("relative error of Z", evidence.error if known and evidence is not None else None, 0.5, "<=", severity="warn",
             description=f"from {runs} independent runs; more runs or particles make it smaller"),
    )  # fmt: skip
    size = found.effective_size
    tests.append(Test("effective draws", size, 100.0, ">=", severity="warn", description="1 / sum of squared weights"))
    return tests


_FAMILIES = (
    "1 / sum of squared weights of the first particles' descendants, over all runs: Z, and masses of modes between which moves "
    "do not go, are known no better than from so many draws, and the scatter of Z over the runs does not show it"
)
_TAIL = (
    "tail of the families' weights: above, few of many have nearly all of Z, and others like them were not met yet; reported "
    "only for fewer than 50 families, whose tail is not known. Draws may be right where Z is not: it does not fail"
)
