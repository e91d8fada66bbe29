"""All samplers and estimators on problems whose posterior is known: the bias certificate as a table.

    python benchmarks/closed_form_posteriors.py [--draws 1000] [--seed 0] [--classify]

Eight features: normal priors at three noise levels and mixtures of ten normals at two observations (`closed_form_cases`). A
row shows the worst figure over the cases of a kind, what it cost, and the verdicts. The exact velocity is given, so what is
seen is the method's own bias. Settings are the defaults; seed and problems were fixed before any figure was seen.
Writes closed_form_posteriors.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from timing import machine, report

from sciflow.certificate import Certificate
from sciflow.posterior import Calls, Method, Result, Sampler
from sciflow.posterior.bias import Case, Oracle, bias_certificate, closed_form_cases
from sciflow.posterior.estimators import DPS, OTODE, DFlow, FlowChef, FlowDPS, FlowLPS, FlowPriors, PnPFlow
from sciflow.posterior.samplers import (
    AnnealedImportance,
    Hamiltonian,
    Importance,
    Langevin,
    LatentHamiltonian,
    Metropolis,
    Tempered,
    TemperedSMC,
    TwistedSMC,
)  # fmt: skip

FIGURES = (
    "mean error",
    "variance ratio, measured",
    "variance ratio, unmeasured",
    "sliced W2",
    "C2ST",
    "mode masses, total variation",
    "log Z",
)


@dataclass
class Counted:
    """A method whose own certificates, calls and seconds are kept."""

    method: Any
    seconds: float = 0.0
    calls: Calls = field(default_factory=Calls)
    verdicts: list[str] = field(default_factory=list)

    def __call__(self, target: Any, draws: int, *, seed: int, progress: bool) -> Result:
        began = time.process_time()
        found = self.method(target, max(4, draws // getattr(self.method, "chains", 1)), seed=seed, progress=progress)
        self.seconds += time.process_time() - began
        self.calls = self.calls + found.calls
        self.verdicts.append(found.certificate.verdict)
        return found

    def __repr__(self) -> str:
        return repr(self.method)


def methods(cases: list[Case]) -> dict[str, Callable[[], Method]]:
    return {
        "exact draws": lambda: Oracle(cases),
        "importance from the prior, 100 proposals a draw": lambda: Importance(multiple=100),
        "twisted SMC, pseudo-inverse twist": TwistedSMC,
        "twisted SMC, corrected": lambda: TwistedSMC(correct=True),
        "tempered SMC": TemperedSMC,
        "annealed importance": AnnealedImportance,
        "tempered HMC in the prior's noise": lambda: Tempered(noise=True),
        "tempered HMC": Tempered,
        "HMC in the prior's noise": LatentHamiltonian,
        "plain HMC, tuned": Hamiltonian,
        "plain MALA, tuned": Langevin,
        "plain random walk, tuned": Metropolis,
        "OT-ODE from noise (estimate)": OTODE,
        "OT-ODE from the adjoint (estimate)": lambda: OTODE(start="adjoint"),
        "DPS (estimate)": DPS,
        "FlowDPS (estimate)": FlowDPS,
        "FlowChef (estimate)": FlowChef,
        "FlowLPS (estimate)": FlowLPS,
        "PnP-Flow (estimate)": PnPFlow,
        "Flow-Priors (estimate)": FlowPriors,
        "D-Flow (estimate)": lambda: DFlow(5),
    }


def worst(certificate: Certificate, figure: str) -> str:
    """The figure furthest outside of, or nearest to, its threshold."""
    tests = [test for test in certificate.tests if test.name.endswith(f": {figure}") and test.value is not None]
    if not tests:
        return "-"

    def excess(test: Any) -> float:
        if isinstance(test.threshold, tuple):
            low, high = test.threshold
            return abs(test.value - (low + high) / 2) / ((high - low) / 2)
        return test.value / test.threshold

    test = max(tests, key=excess)
    return f"{test.value:.2g}" + ("" if test.passed else " ✗")


def row(name: str, kind: str, method: Any, cases: list[Case], options: argparse.Namespace) -> str:
    counted = Counted(method)
    certificate = bias_certificate(counted, draws=options.draws, cases=cases, seed=options.seed, classify=options.classify)  # type: ignore[arg-type]
    calls = counted.calls
    own = ", ".join(sorted(set(counted.verdicts))) if isinstance(method, Sampler) else "-"
    figures = " | ".join(worst(certificate, figure) for figure in FIGURES if figure != "C2ST" or options.classify)
    return (
        f"| {name} | {figures} | {certificate.verdict} | {own} | {counted.seconds / max(len(cases), 1):.1f} | "
        f"{calls.likelihood / len(cases):.1e} | {calls.velocity / len(cases):.1e} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--draws", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--classify", action="store_true", help="C2ST too (slow)")
    parser.add_argument("--only", nargs="+", default=[])
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    cases = closed_form_cases(features=(8,))
    kinds = {"Normal priors": [c for c in cases if not c.modes], "Mixtures of ten normals": [c for c in cases if c.modes]}
    lines = [
        "# Methods on closed-form posteriors",
        "",
        f"{machine()}. Eight features, four measured, {options.draws} draws per problem, seed {options.seed}, defaults. "
        "The worst figure over the problems of a kind; ✗: outside of its threshold (`sciflow.posterior.bias`). Mean error in "
        "posterior standard deviations; variance over that of the closed form; sliced W2; total variation between mode masses; "
        "|log Z error| in stated errors. Seconds of processor time, likelihood and velocity calls (rows) per problem. The bias "
        "certificate knows the answer; the method's own certificate does not: where the first fails, the second should not "
        "have passed.",
        "",
    ]
    heads = [figure for figure in FIGURES if figure != "C2ST" or options.classify]
    for kind, chosen in kinds.items():
        titles = ["method", *heads, "bias certificate", "own certificate", "s", "likelihood", "velocity"]
        lines += [f"## {kind} ({len(chosen)} problems)", "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
        for name, make in methods(cases).items():
            if not options.only or name in options.only:
                lines.append(row(name, kind, make(), chosen, options))
                sys.stderr.write(lines[-1] + "\n")
        lines.append("")
    left_out = [name for name in methods(cases) if options.only and name not in options.only]
    lines += [f"Not run: {', '.join(left_out)}."] if left_out else []
    report("\n".join(lines) + "\n", options.output)


if __name__ == "__main__":
    main()
